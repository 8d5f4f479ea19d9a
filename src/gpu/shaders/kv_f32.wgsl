// Keys and values in f32: four words are four values.
fn kv_words(units: u32) -> u32 {
    return 4u * units;
}
