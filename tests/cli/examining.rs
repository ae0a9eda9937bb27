//! `nucleus doctor`, on a machine where nothing is known of a GPU.

use crate::support::run;

#[test]
fn doctor_says_what_there_is() {
    let report = run(&["doctor", "--device", "cpu", "--json"]).json();
    assert_eq!(report["asked"], "cpu");
    assert_eq!(report["model"]["device"], "cpu");
    assert_eq!(report["model"]["tokens"], 4);
    assert!(report["processor"]["threads"].as_u64().unwrap() > 0);
    assert!(report["error"].is_null() && report["devices"].is_array());
    let features = report["features"].as_array().unwrap();
    assert_eq!(features.contains(&"cuda".into()), cfg!(feature = "cuda"));
    assert_eq!(report["cuda"].is_null(), !cfg!(feature = "cuda"));

    let text = run(&["doctor"]);
    assert_eq!(text.code, 0, "{}", text.stderr);
    for line in ["build", "GPU code", "processor", "driver", "model"] {
        let is_there = text.stdout.lines().any(|found| found.starts_with(line));
        assert!(is_there, "{line} is missing in {}", text.stdout);
    }
}

/// A GPU that is asked for and not there is an error, after everything else has been said.
#[test]
fn doctor_fails_without_the_device_that_is_asked_for() {
    let run = run(&["doctor", "--device", "cuda:99", "--json"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("error: --device cuda:99: "),
        "{}",
        run.stderr
    );
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(report["model"].is_null() && report["error"].is_string());
}
