//! Deterministic rows of logits and histories: the generators of `peers/sampling/rows.py`, number for number.

/// Logits are integers divided by this, so that they are exact in `f32`.
const UNIT: i64 = 1 << 17;

/// Output number `index` (from 0) of splitmix64 started at `seed`.
pub(crate) fn splitmix64(seed: u64, index: usize) -> u64 {
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Sum of the eight bytes less its mean: approximately normal, sigma 209.
fn byte_sum(word: u64) -> i64 {
    word.to_le_bytes().into_iter().map(i64::from).sum::<i64>() - 1020
}

fn bell(word: u64, fine: u64) -> i64 {
    byte_sum(word) * 1536 + (fine % 1536) as i64
}

/// The logit of one id in units; `None` where it is masked.
fn value(shape: &str, word: u64, fine: u64) -> Option<i64> {
    match shape {
        "bell" | "peaked" | "one_hot" => Some(bell(word, fine)),
        "masked" => (fine >> 32 & 3 != 0).then(|| bell(word, fine)),
        "sparse" => (fine >> 32 & 31 == 0).then(|| bell(word, fine)),
        "steps" => Some(((byte_sum(word) * 3) >> 2) * (UNIT >> 6)),
        "ties" => Some(((byte_sum(word) * 3) >> 6) * (UNIT >> 2)),
        "heavy" => {
            Some(i64::from(word.leading_zeros().min(63)) * 196_608 + (fine % 196_608) as i64)
        }
        "flat" => Some((fine & 1) as i64 * (UNIT >> 6)),
        other => panic!("no shape is called {other:?}"),
    }
}

/// Raises 20 ids by 6 to 14.
fn raise(row: &mut [i64], seed: u64) {
    for draw in 0..20 {
        let place = splitmix64(seed ^ 0x5EED, 2 * draw) % row.len() as u64;
        let amount = splitmix64(seed ^ 0x5EED, 2 * draw + 1) >> 44;
        row[place as usize] += 6 * UNIT + amount as i64;
    }
}

/// One row of `vocab` logits.
pub(crate) fn logits(shape: &str, seed: u64, vocab: usize) -> Vec<f32> {
    const MASKED: i64 = i64::MIN;
    let fine = |id| splitmix64(seed ^ 0xF14E, id);
    let mut row: Vec<i64> = (0..vocab)
        .map(|id| value(shape, splitmix64(seed, id), fine(id)).unwrap_or(MASKED))
        .collect();
    match shape {
        "peaked" => raise(&mut row, seed),
        "one_hot" => row[(fine(0) % vocab as u64) as usize] += 40 * UNIT,
        _ => {}
    }
    let to_f32 = |x: i64| {
        if x == MASKED {
            f32::NEG_INFINITY
        } else {
            x as f32 / UNIT as f32
        }
    };
    row.into_iter().map(to_f32).collect()
}

/// The first `count` ids of a history: draws from a small alphabet, so that passages repeat.
pub(crate) fn history(seed: u64, alphabet: &[u32], count: usize) -> Vec<u32> {
    (0..count)
        .map(|i| alphabet[(splitmix64(seed, i) >> 32) as usize % alphabet.len()])
        .collect()
}

/// 64-bit FNV-1a over ids, four little-endian bytes each.
pub(crate) fn fnv1a(ids: &[u32]) -> u64 {
    ids.iter()
        .flat_map(|id| id.to_le_bytes())
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        })
}
