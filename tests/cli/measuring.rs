//! `nucleus bench`.

use crate::support::run;

/// R4.1: what decoding and drawing take on this machine.
#[test]
fn bench_reports_decoding_and_sampling() {
    let flags = [
        "--sequences",
        "1,2",
        "--tokens",
        "3",
        "--vocab",
        "1000",
        "--json",
    ];
    let report = run(&[&["bench"], &flags[..]].concat()).json();
    let decoding = report["decoding"].as_array().unwrap();
    assert_eq!(
        (&decoding[0]["sequences"], &decoding[1]["sequences"]),
        (&1.into(), &2.into())
    );
    assert!(decoding[1]["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    let sampling = report["sampling"].as_array().unwrap();
    assert!(
        sampling
            .iter()
            .all(|row| row["vocab_size"] == 1000 && row["median_us"].as_f64().unwrap() > 0.0)
    );
    run(&["bench", "--sequences", "0"]).refused(2, &["0", "--sequences"]);
}
