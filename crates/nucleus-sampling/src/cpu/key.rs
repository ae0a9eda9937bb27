//! The order of candidates as one integer.

/// A token in the order of logit descending, then id ascending: smaller keys come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u64);

impl Key {
    /// The key of a token. -0 counts as +0.
    #[inline(always)]
    pub(super) fn new(logit: f32, id: u32) -> Self {
        Self(u64::from(descending(logit)) << 32 | u64::from(id))
    }

    /// The key with these bits.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The token.
    #[inline(always)]
    pub(super) fn id(self) -> u32 {
        self.0 as u32
    }

    /// The logit; never -0.
    #[inline(always)]
    pub(super) fn logit(self) -> f32 {
        ascending(self.high())
    }

    /// The part that orders by logit alone.
    #[inline(always)]
    pub(super) fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A logit as an integer that falls as the logit rises.
#[inline(always)]
pub(super) fn descending(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 1 {
        bits
    } else {
        !(bits | 0x8000_0000)
    }
}

/// The logit of such an integer.
#[inline(always)]
pub(super) fn ascending(code: u32) -> f32 {
    f32::from_bits(if code >> 31 == 1 {
        code
    } else {
        !code & 0x7FFF_FFFF
    })
}

/// Sorts keys that are in ascending order of id; `spare` is working space.
pub(super) fn sort(keys: &mut Vec<Key>, spare: &mut Vec<Key>) {
    /// From here on counting digits is faster than comparing.
    const MANY: usize = 512;
    if keys.len() < MANY {
        keys.sort_unstable();
        return;
    }
    spare.clear();
    spare.resize(keys.len(), Key(0));
    // 11 + 11 + 10 bits of the logit; a stable sort leaves ids ascending among equals. Three passes end in `spare`.
    distribute::<2048>(keys, spare, 0);
    distribute::<2048>(spare, keys, 11);
    distribute::<1024>(keys, spare, 22);
    std::mem::swap(keys, spare);
}

/// One pass of a radix sort: `to` receives `from` ordered by the digit of `DIGITS` values that starts at bit `shift` of the logit's part.
fn distribute<const DIGITS: usize>(from: &[Key], to: &mut [Key], shift: u32) {
    let digit = |key: &Key| (key.high() >> shift) as usize & (DIGITS - 1);
    let mut places = [0u32; DIGITS];
    from.iter().for_each(|key| places[digit(key)] += 1);
    let mut next = 0;
    for place in &mut places {
        next += std::mem::replace(place, next);
    }
    for key in from {
        let place = &mut places[digit(key)];
        to[*place as usize] = *key;
        *place += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_logits_come_first_and_then_lower_ids() {
        let order = [
            Key::new(f32::MAX, 9),
            Key::new(1.5, 3),
            Key::new(1.5, 4),
            Key::new(f32::MIN_POSITIVE, 0),
            Key::new(0.0, 1),
            Key::new(-0.0, 2),
            Key::new(-1.0e-40, 0),
            Key::new(-7.0, 0),
            Key::new(f32::MIN, 0),
        ];
        assert!(order.is_sorted());
    }

    #[test]
    fn a_key_gives_back_its_token() {
        for logit in [0.0, 1.0, -1.0, 1e-42, -1e-42, f32::MAX, f32::MIN] {
            assert_eq!(
                (Key::new(logit, 7).logit(), Key::new(logit, 7).id()),
                (logit, 7)
            );
        }
        assert!(Key::new(-0.0, 0).logit().is_sign_positive());
    }

    #[test]
    fn both_ways_of_sorting_agree() {
        let logit = |id: u32| (id.wrapping_mul(2_654_435_761) >> 20) as f32 - 2048.0;
        let mut keys: Vec<_> = (0..5000).map(|id| Key::new(logit(id) / 8.0, id)).collect();
        let mut expected = keys.clone();
        expected.sort_unstable();
        sort(&mut keys, &mut Vec::new());
        assert_eq!(keys, expected);
    }
}
