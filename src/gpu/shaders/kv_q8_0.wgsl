// Keys and values in signed bytes: a word is four values; behind those of a row, a word for the scale of each 32.
fn kv_words(units: u32) -> u32 {
    return units + units / 8u;
}
