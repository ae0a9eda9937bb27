//! Writes a GGUF file of a well-known shape with random weights, to measure speed with: `random_model 1B:Q4_K_M FILE`.

use std::fs::File;
use std::io::Write;

#[path = "decode_speed/random.rs"]
mod random;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: random_model 1B|3.8B|8B:F16|BF16|Q8_0|Q4_0|Q4_K_M FILE";
    let mut args = std::env::args().skip(1);
    let (name, path) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let model = random::model(&name)?;
    let mut file = File::create(path)?;
    let mut piece = vec![0; 16 << 20];
    let mut offset = 0;
    while offset < model.size() {
        let len = (model.size() - offset).min(piece.len() as u64) as usize;
        model.read_at(offset, &mut piece[..len])?;
        file.write_all(&piece[..len])?;
        offset += len as u64;
    }
    Ok(())
}
