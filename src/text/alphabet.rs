//! The byte-level alphabet of GPT-2: each of the 256 bytes is written as one printable character, so that a
//! vocabulary of arbitrary bytes can be stored as text (`bytes_to_unicode` in GPT-2's `encoder.py`).

/// Bytes that stand for themselves; the others are numbered from U+0100 on in ascending order.
const fn is_itself(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// `TO_BYTE[c]` is the byte that the character with code point `c` stands for, or 256 for none.
const TO_BYTE: [u16; 324] = {
    let mut table = [256; 324];
    let mut next = 256;
    let mut byte = 0;
    while byte < 256 {
        if is_itself(byte as u8) {
            table[byte] = byte as u16;
        } else {
            table[next] = byte as u16;
            next += 1;
        }
        byte += 1;
    }
    table
};

/// The byte that `c` stands for, or `None` if `c` is not in the alphabet.
fn byte_of(c: char) -> Option<u8> {
    let entry = TO_BYTE.get(c as usize)?;
    u8::try_from(*entry).ok()
}

/// The bytes of a token written in the alphabet. A token with any other character is taken as plain text, as the
/// `tokenizers` library does.
pub(super) fn decode(token: &str) -> Box<[u8]> {
    let bytes: Option<Box<[u8]>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.as_bytes().into())
}

/// The byte written as `<0xNN>` by vocabularies with byte fallback.
pub(super) fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let digits = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(hex, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_a_bijection_onto_the_bytes() {
        let mut bytes: Vec<u8> = (0..400).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        // Known spellings: the space, the line break, a byte that never starts a character.
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('Ń'), Some(0xAD));
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('€'), None);
    }

    #[test]
    fn tokens_outside_the_alphabet_are_text() {
        assert_eq!(&*decode("ĠcafÃ©"), " café".as_bytes());
        assert_eq!(&*decode("a b"), b"a b");
    }

    #[test]
    fn fallback_bytes_are_exactly_two_hex_digits() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xff>"), Some(255));
        for bad in ["<0x>", "<0xA>", "<0x0AB>", "<0x+A>", "0x0A", "<0xGG>", "<0x0A", "<0xé>"] {
            assert_eq!(fallback_byte(bad), None, "{bad}");
        }
    }
}
