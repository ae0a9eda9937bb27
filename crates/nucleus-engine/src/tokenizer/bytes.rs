//! The alphabet of byte-level BPE: one printable character for each byte.
//!
//! Printable bytes of Latin-1 stand for themselves; the 68 others stand, in order, for the characters from U+0100 on
//! (GPT-2, `encoder.py`, `bytes_to_unicode`). So a space is `Ġ` and a line feed is `Ċ`.

/// The character that stands for a byte.
pub(super) fn to_char(byte: u8) -> char {
    CHARS[byte as usize]
}

/// The byte that a character stands for.
pub(super) fn from_char(character: char) -> Option<u8> {
    match u8::try_from(character) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => OTHERS
            .get((character as usize).checked_sub(FIRST_OTHER as usize)?)
            .copied(),
    }
}

/// Whether a byte occurs in UTF-8 (RFC 3629, section 4) of characters up to U+3FFFF, white space included and control
/// characters not. Beyond are no letters, only a few format characters and private use.
pub(super) fn is_common(byte: u8) -> bool {
    let is_control = byte.is_ascii_control() && !matches!(byte, b'\t' | b'\n' | b'\r');
    !is_control && !matches!(byte, 0xc0 | 0xc1 | 0xf1..=0xff)
}

const FIRST_OTHER: u32 = 0x100;
const OTHER_COUNT: usize = 68;

const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The bytes that are not printable, in order.
const OTHERS: [u8; OTHER_COUNT] = {
    let mut others = [0; OTHER_COUNT];
    let (mut byte, mut count) = (0, 0);
    while byte < 256 {
        if !is_printable(byte as u8) {
            others[count] = byte as u8;
            count += 1;
        }
        byte += 1;
    }
    assert!(count == OTHER_COUNT);
    others
};

const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let (mut byte, mut others) = (0, 0);
    while byte < 256 {
        if is_printable(byte as u8) {
            chars[byte] = byte as u8 as char;
        } else {
            chars[byte] = match char::from_u32(FIRST_OTHER + others) {
                Some(character) => character,
                None => panic!("all characters from U+0100 to U+0143 exist"),
            };
            others += 1;
        }
        byte += 1;
    }
    chars
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_characters() {
        assert_eq!(to_char(b'a'), 'a');
        assert_eq!(to_char(b' '), 'Ġ');
        assert_eq!(to_char(b'\n'), 'Ċ');
        assert_eq!(to_char(0x00), '\u{100}');
        assert_eq!(to_char(0xad), '\u{143}');
        assert_eq!(to_char(0xff), 'ÿ');
    }

    #[test]
    fn every_byte_has_its_own_character() {
        for byte in 0..=255 {
            assert_eq!(from_char(to_char(byte)), Some(byte));
        }
    }

    #[test]
    fn other_characters_stand_for_nothing() {
        for character in [' ', '\n', '\u{7f}', '\u{ad}', '\u{144}', '▁', '🐉'] {
            assert_eq!(from_char(character), None, "{character:?}");
        }
    }

    #[test]
    fn common_bytes_are_those_of_characters_up_to_u_3ffff() {
        for character in ['\n', 'z', 'é', '日', '🐉', '\u{3ffff}'] {
            assert!(
                character.to_string().bytes().all(is_common),
                "{character:?}"
            );
        }
        assert!(!is_common("\u{40000}".as_bytes()[0]));
        assert!(!is_common(0) && !is_common(0x7f));
        assert_eq!((0..=255).filter(|&byte| is_common(byte)).count(), 209);
    }
}
