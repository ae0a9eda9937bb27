//! SentencePiece's normalisation, compiled (`precompiled_charsmap`): each longest run of bytes that the map has becomes another text.
//!
//! The map is the length of a trie in bytes (32 bits, little endian), the trie, and the texts, each ended by a zero. The trie is a double array whose units are
//! exclusive-ored with the next byte (Kanda 2018, "Space- and Time-Efficient String Dictionaries"; the layout is that of darts-clone): bits 0 to 7 of a unit are
//! the byte that led to it, bit 8 says that a key ends here, bits 10 to 30 say where its children are, in steps of 256 with bit 9. Of a key's end, the unit at the
//! children's place has bit 31 and where the text begins.

/// Bytes of a unit, and of the trie's length.
const UNIT_BYTES: usize = 4;
/// Bits of a unit that are the byte that led to it. Units that hold a text have bit 31, and so are no byte's.
const LABEL: u32 = 1 << 31 | 0xff;
/// A unit's bit that says that a key ends there.
const HAS_LEAF: u32 = 1 << 8;

/// A compiled normalisation. Whatever its units say, no lookup leaves it.
#[derive(Debug)]
pub(super) struct CharacterMap {
    units: Vec<u32>,
    texts: String,
}

impl CharacterMap {
    /// Reads the map.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, &'static str> {
        let (length, rest) = bytes
            .split_first_chunk::<UNIT_BYTES>()
            .ok_or("it is shorter than its header")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (units, texts) = rest
            .split_at_checked(length)
            .ok_or("its trie is longer than the map")?;
        let (units, []) = units.as_chunks::<UNIT_BYTES>() else {
            return Err("its trie is no array of 32-bit units");
        };
        let texts = std::str::from_utf8(texts).map_err(|_| "its texts are no UTF-8")?;
        Ok(Self {
            units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            texts: texts.to_owned(),
        })
    }

    /// Refuses a map by which a lookup can leave the trie or the texts: what looks up without asking needs that.
    pub(super) fn check_lookups(&self) -> Result<(), &'static str> {
        let outside = "its trie leads to a place that it does not have";
        let Some(&root) = self.units.first() else {
            return Err(outside);
        };
        let mut seen = vec![false; self.units.len()];
        let mut places = vec![children(root)];
        while let Some(place) = places.pop() {
            for byte in 1..=u8::MAX {
                let at = (place ^ u32::from(byte)) as usize;
                let Some(&unit) = self.units.get(at) else {
                    return Err(outside);
                };
                if unit & LABEL != u32::from(byte) || std::mem::replace(&mut seen[at], true) {
                    continue;
                }
                let next = at as u32 ^ children(unit);
                if unit & HAS_LEAF != 0 && self.text_at(next).is_none() {
                    return Err("its trie leads to a text that it does not have");
                }
                places.push(next);
            }
        }
        Ok(())
    }

    /// The text with all that the map has replaced.
    pub(super) fn apply(&self, text: &str) -> String {
        let mut mapped = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let (len, replacement) = self.longest(rest).unwrap_or_else(|| {
                let len = first.len_utf8();
                (len, &rest[..len])
            });
            mapped.push_str(replacement);
            rest = &rest[len..];
        }
        mapped
    }

    /// The longest beginning of a text that the map has, in bytes and whole characters, and what it becomes.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let mut place = children(*self.units.first()?);
        let mut longest = None;
        for (len, byte) in (1..).zip(text.bytes()) {
            place ^= u32::from(byte);
            match self.units.get(place as usize) {
                Some(&unit) if byte != 0 && unit & LABEL == u32::from(byte) => {
                    place ^= children(unit);
                    if unit & HAS_LEAF != 0 && text.is_char_boundary(len) {
                        longest = self.text_at(place).map(|text| (len, text)).or(longest);
                    }
                }
                _ => break,
            }
        }
        longest
    }

    /// The text that the unit at a place points to.
    fn text_at(&self, place: u32) -> Option<&str> {
        let begin = self.units.get(place as usize)? & !(1 << 31);
        self.texts.get(begin as usize..)?.split('\0').next()
    }
}

/// Where a unit's children are, relative to it.
fn children(unit: u32) -> u32 {
    (unit >> 10) << ((unit & 1 << 9) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of `a` to `bc`, and of `aé` to nothing. A unit's children lie at its own place exclusive-ored with its offset.
    fn small() -> Vec<u8> {
        let mut units = vec![0u32; 1024];
        let unit = |label: u8, leaf: bool, offset: u32| {
            u32::from(label) | u32::from(leaf) << 8 | offset << 10
        };
        let [c3, a9] = [0xc3u32, 0xa9];
        // From the root, at 0, by way of 256.
        units[0] = unit(0, false, 256);
        let a = 256 ^ u32::from(b'a');
        units[a as usize] = unit(b'a', true, a ^ 512);
        units[512] = 1 << 31;
        let first = 512 ^ c3;
        units[first as usize] = unit(0xc3, false, first ^ 768);
        let second = 768 ^ a9;
        units[second as usize] = unit(0xa9, true, second ^ 769);
        units[769] = 1 << 31 | 3;
        let mut bytes = 4096u32.to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(b"bc\0\0");
        bytes
    }

    #[test]
    fn the_longest_key_is_replaced_and_the_rest_stays() {
        let map = CharacterMap::new(&small()).unwrap();
        assert_eq!(map.apply("xaxaéxaà"), "xbcxxbcà");
        assert_eq!(map.apply("é\0"), "é\0");
        assert_eq!(map.apply(""), "");
    }

    #[test]
    fn maps_that_are_cut_are_refused() {
        let error = |bytes: &[u8]| CharacterMap::new(bytes).unwrap_err();
        let bytes = small();
        assert_eq!(error(&bytes[..3]), "it is shorter than its header");
        assert_eq!(error(&bytes[..4000]), "its trie is longer than the map");
        assert_eq!(
            error(&[2, 0, 0, 0, 1, 2]),
            "its trie is no array of 32-bit units"
        );
        assert_eq!(error(&[0, 0, 0, 0, 0xff]), "its texts are no UTF-8");
    }

    #[test]
    fn maps_whose_lookups_go_astray_are_told() {
        let check = |bytes: &[u8]| CharacterMap::new(bytes).unwrap().check_lookups();
        let sound = small();
        assert_eq!(check(&sound), Ok(()));
        let with_unit = |at: usize, unit: u32| {
            let mut bytes = sound.clone();
            bytes[4 + 4 * at..8 + 4 * at].copy_from_slice(&unit.to_le_bytes());
            check(&bytes).unwrap_err()
        };
        let place = "its trie leads to a place that it does not have";
        let text = "its trie leads to a text that it does not have";
        assert_eq!(check(&[0, 0, 0, 0]).unwrap_err(), place);
        assert_eq!(with_unit(0, 1024 << 10), place);
        let a = 256 ^ usize::from(b'a');
        let to = |leaf| u32::from(b'a') | leaf | 1024 << 10;
        assert_eq!(with_unit(a, to(0)), place);
        assert_eq!(with_unit(a, to(HAS_LEAF)), text);
        assert_eq!(with_unit(512, 1 << 31 | 5), text);
    }

    /// The simplest generator there is: Numerical Recipes' linear congruential one.
    #[test]
    fn lookups_stay_within_any_map() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()
        };
        for size in [0u32, 1, 64, 1024] {
            for _ in 0..50 {
                let mut bytes = (size * 4).to_le_bytes().to_vec();
                (0..size).for_each(|_| bytes.extend(random()));
                bytes.extend(b"one\0two");
                let map = CharacterMap::new(&bytes).unwrap();
                let text: String = (0..64).flat_map(|_| random().map(char::from)).collect();
                map.apply(&text);
            }
        }
        let mut bytes = small();
        for at in (4..4100).step_by(4) {
            let unit = bytes[at..at + 4].to_vec();
            bytes[at..at + 4].copy_from_slice(&random());
            CharacterMap::new(&bytes).unwrap().apply("aéa\u{10ffff}x");
            bytes[at..at + 4].copy_from_slice(&unit);
        }
    }
}
