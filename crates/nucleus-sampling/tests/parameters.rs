//! The parameter table: names, types, reading, writing, and the page that is made from it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nucleus_sampling::{
    Bound, Domain, Literal, PARAMS, ParamError, ParamKind, ParamSpec, ParamValue, Policy,
    SamplingParams, Stage, Status,
};

/// Some value of each type, as a command line writes it.
const TEXTS: [(ParamKind, &str); 9] = [
    (ParamKind::Float, "0.5"),
    (ParamKind::Int, "-1"),
    (ParamKind::Uint, "7"),
    (ParamKind::Bool, "true"),
    (ParamKind::Text, "vllm"),
    (ParamKind::TextList, "top_k, min_p"),
    (ParamKind::Ids, "1,2,3"),
    (ParamKind::Sequences, "1,2;7"),
    (ParamKind::Bias, "15:-2.5,20:1"),
];

fn sample(kind: ParamKind) -> ParamValue {
    let (_, text) = TEXTS
        .into_iter()
        .find(|(of, _)| *of == kind)
        .expect("every type is listed");
    kind.parse(text).expect(text)
}

#[test]
fn names_are_unique_and_documented() {
    let names: BTreeSet<_> = PARAMS.iter().map(|spec| spec.name).collect();
    assert_eq!(names.len(), PARAMS.len());
    for spec in PARAMS {
        assert!(
            spec.help.ends_with('.') && !spec.help.contains('\n'),
            "{}",
            spec.name
        );
        assert_eq!(ParamSpec::find(spec.name), Some(spec));
    }
}

#[test]
fn every_parameter_can_be_set_and_read_by_name() {
    for spec in PARAMS {
        let mut params = SamplingParams::default();
        assert_eq!(params.get(spec.name), Ok(None));
        params.set(spec.name, sample(spec.kind)).unwrap();
        assert_eq!(params.get(spec.name), Ok(Some(sample(spec.kind))));
        let present = PARAMS
            .iter()
            .filter(|other| params.get(other.name).unwrap().is_some());
        assert_eq!(present.count(), 1, "{} sets itself alone", spec.name);
    }
}

#[test]
fn json_carries_every_parameter_under_its_name() {
    for spec in PARAMS {
        let mut params = SamplingParams::default();
        params.set(spec.name, sample(spec.kind)).unwrap();
        let json = serde_json::to_string(&params).unwrap();
        assert!(json.starts_with(&format!("{{\"{}\":", spec.name)), "{json}");
        assert_eq!(
            serde_json::from_str::<SamplingParams>(&json).unwrap(),
            params
        );
    }
    assert_eq!(
        serde_json::to_string(&SamplingParams::default()).unwrap(),
        "{}"
    );
}

#[test]
fn unknown_names_are_refused() {
    let unknown = ParamError::Unknown {
        name: "tempreature".to_owned(),
    };
    let mut params = SamplingParams::default();
    assert_eq!(params.get("tempreature"), Err(unknown.clone()));
    assert_eq!(unknown.param(), "tempreature");
    assert_eq!(
        params.set("tempreature", ParamValue::Float(1.0)),
        Err(unknown.clone())
    );
    assert_eq!(
        unknown.to_string(),
        "tempreature: no such sampling parameter"
    );
    let error = serde_json::from_str::<SamplingParams>(r#"{"tempreature": 1}"#).unwrap_err();
    assert!(
        error.to_string().contains("unknown field `tempreature`"),
        "{error}"
    );
}

#[test]
fn values_of_another_type_are_refused() {
    let mut params = SamplingParams::default();
    let error = params
        .set("temperature", ParamValue::Text("hot".to_owned()))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "temperature: \"hot\" is not of type number"
    );
    let error = params.set("seed", ParamValue::Int(-1)).unwrap_err();
    assert_eq!(error.to_string(), "seed: -1 is not of type integer");
    assert_eq!(error.param(), "seed");
}

#[test]
fn values_are_shown_as_they_would_be_written() {
    let shown = |value: ParamValue| value.to_string();
    assert_eq!(shown(ParamValue::Float(0.5)), "0.5");
    assert_eq!(shown(ParamValue::Int(-1)), "-1");
    assert_eq!(shown(ParamValue::Uint(u64::MAX)), "18446744073709551615");
    assert_eq!(shown(ParamValue::Bool(true)), "true");
    assert_eq!(shown(ParamValue::Text("hf".to_owned())), r#""hf""#);
    assert_eq!(
        shown(ParamValue::TextList(vec!["xtc".to_owned()])),
        r#"["xtc"]"#
    );
    assert_eq!(shown(ParamValue::Ids(vec![1, 2])), "[1, 2]");
    assert_eq!(
        shown(ParamValue::Sequences(vec![vec![1], vec![2]])),
        "[[1], [2]]"
    );
    assert_eq!(shown(ParamValue::Bias([(7, -1.5)].into())), "{7: -1.5}");
}

#[test]
fn a_status_is_a_sentence() {
    let text = |status: Status| status.to_string();
    assert_eq!(text(Status::Ok), "a token was chosen");
    assert_eq!(text(Status::Nan), "a logit is not a number");
    assert_eq!(text(Status::Overflow), "a logit is infinite or too large");
    assert_eq!(text(Status::Empty), "no token is left to draw from");
}

/// An end of a range that is the vocabulary's size means nothing until the size is put in.
#[test]
fn the_vocabulary_ends_a_range_once_it_is_known() {
    let domain = Domain {
        low: Bound::Inclusive(0.0),
        high: Bound::Vocab,
    };
    assert!(!domain.contains(3.0));
    assert!(domain.at(3).contains(3.0));
    assert!(!domain.at(3).contains(4.0));
    let inside = Domain {
        low: Bound::Exclusive(0.0),
        high: Bound::Exclusive(1.0),
    };
    assert_eq!(
        [0.0, 0.5, 1.0].map(|x| inside.contains(x)),
        [false, true, false]
    );
    assert_eq!(
        (domain.to_string(), inside.to_string()),
        ("[0, vocab]".to_owned(), "(0, 1)".to_owned())
    );
}

#[test]
fn whole_numbers_are_taken_for_one_another() {
    let mut params = SamplingParams::default();
    params.set("temperature", ParamValue::Int(1)).unwrap();
    params.set("min_p", ParamValue::Uint(1)).unwrap();
    params.set("top_k", ParamValue::Uint(40)).unwrap();
    params.set("seed", ParamValue::Int(3)).unwrap();
    let SamplingParams {
        temperature,
        min_p,
        top_k,
        seed,
        ..
    } = params;
    assert_eq!(
        (temperature, min_p, top_k, seed),
        (Some(1.0), Some(1.0), Some(40), Some(3))
    );
}

#[test]
fn text_that_is_no_value_is_none() {
    assert_eq!(ParamKind::Float.parse("warm"), None);
    assert_eq!(ParamKind::Uint.parse("-1"), None);
    assert_eq!(ParamKind::Ids.parse("1,x"), None);
    assert_eq!(ParamKind::Sequences.parse("1;x"), None);
    assert_eq!(ParamKind::Bias.parse("1"), None);
    assert_eq!(ParamKind::Ids.parse(""), Some(ParamValue::Ids(vec![])));
}

#[test]
fn every_default_has_the_type_of_its_parameter() {
    for spec in PARAMS {
        for policy in [Policy::Library, Policy::LlamaCpp] {
            if let Some(value) = spec.default_value(policy) {
                let mut params = SamplingParams::default();
                params.set(spec.name, value.clone()).unwrap();
                assert_eq!(params.get(spec.name), Ok(Some(value)), "{}", spec.name);
            }
        }
    }
}

#[test]
fn every_stage_that_can_be_ordered_has_a_parameter_and_its_name_reads_back() {
    for stage in Stage::ORDERED {
        assert!(PARAMS.iter().any(|spec| spec.stage == stage), "{stage}");
        assert_eq!(Stage::from_name(stage.name()), Some(stage));
    }
    for (spelling, stage) in [
        ("typ_p", Stage::TypicalP),
        ("top-k", Stage::TopK),
        ("temp", Stage::Temperature),
    ] {
        assert_eq!(Stage::from_name(spelling), Some(stage));
    }
    assert_eq!(
        Stage::from_name("draw"),
        None,
        "the draw is always last and not listed"
    );
}

fn literal(value: Literal) -> String {
    match value {
        Literal::Absent => String::new(),
        Literal::Float(value) => value.to_string(),
        Literal::Int(value) => value.to_string(),
        Literal::Bool(value) => value.to_string(),
        Literal::Text(value) => value.to_owned(),
    }
}

/// The table of `docs/sampling.md`.
fn table() -> String {
    let range = |spec: &ParamSpec, policy| {
        spec.range(policy)
            .map_or(String::new(), |domain| domain.to_string())
    };
    let row = |spec: &ParamSpec| {
        format!(
            "| `{}` | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            spec.name,
            spec.kind.name(),
            range(spec, Policy::Library),
            range(spec, Policy::Execute),
            range(spec, Policy::OpenAi),
            literal(spec.default(Policy::Library)),
            literal(spec.default(Policy::LlamaCpp)),
            spec.stage,
            spec.help,
        )
    };
    let head = "| parameter | type | range | on /execute | on /v1 | default | on /completion | stage | meaning |\n\
                |---|---|---|---|---|---|---|---|---|\n";
    head.to_owned() + &PARAMS.iter().map(row).collect::<String>()
}

#[test]
fn the_page_shows_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/sampling.md");
    let page = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(
        page.contains(&table()),
        "docs/sampling.md must contain this table:\n\n{}",
        table()
    );
}
