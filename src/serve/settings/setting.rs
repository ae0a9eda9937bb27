//! One setting: what values it has, how it is written, and how it is read.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches};
use toml::Value;

use super::Settings;

/// One setting.
pub(super) struct Setting {
    /// Its key in a file. The flag has dashes in it, the variable is `NUCLEUS_` and the key in capitals.
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// What values a setting has, and where they are kept.
pub(super) enum Kind {
    /// An integer of a range; none is a choice of the program's own, which the help names.
    Count {
        low: u64,
        high: u64,
        get: fn(&Settings) -> Option<u64>,
        set: fn(&mut Settings, u64),
    },
    /// A time in seconds, above 0.
    Seconds {
        get: fn(&Settings) -> Duration,
        set: fn(&mut Settings, Duration),
    },
    /// A text; `set` says whether it can be used.
    Text {
        expected: &'static str,
        get: fn(&Settings) -> Option<String>,
        set: fn(&mut Settings, &str) -> bool,
    },
    /// A text that is never shown.
    Secret {
        expected: &'static str,
        is_set: fn(&Settings) -> bool,
        set: fn(&mut Settings, &str) -> bool,
    },
    /// Texts. On the command line the flag is repeated, in the environment commas stand between them.
    List {
        get: fn(&Settings) -> &[String],
        set: fn(&mut Settings, Vec<String>),
    },
    /// True or false. The flag needs no value.
    Switch {
        get: fn(&Settings) -> bool,
        set: fn(&mut Settings, bool),
    },
}

impl Setting {
    pub(super) fn flag(&self) -> String {
        format!("--{}", self.key.replace('_', "-"))
    }

    pub(super) fn variable(&self) -> String {
        format!("NUCLEUS_{}", self.key.to_uppercase())
    }

    pub(super) fn arg(&self) -> Arg {
        let mut help = self.help.to_owned();
        let value = self.shown(&Settings::default());
        if let (Some(value), false) = (
            value,
            matches!(self.kind, Kind::List { .. } | Kind::Switch { .. }),
        ) {
            help.push_str(&format!(" [default: {}]", value.trim_matches('"')));
        }
        help.push_str(&format!(" [env: {}]", self.variable()));
        let arg = Arg::new(self.key)
            .long(self.key.replace('_', "-"))
            .help(help);
        let arg = if self.key == "model" {
            arg.short('m')
        } else {
            arg
        };
        match self.kind {
            Kind::Count { .. } => arg.value_name("N"),
            Kind::Seconds { .. } => arg.value_name("SECONDS"),
            Kind::Text { .. } => arg.value_name("VALUE"),
            Kind::Secret { .. } => arg.value_name("KEY"),
            Kind::List { .. } => arg.value_name("NAME").action(ArgAction::Append),
            Kind::Switch { .. } => arg.action(ArgAction::SetTrue),
        }
    }

    /// What the command line says, if anything.
    pub(super) fn given(&self, matches: &ArgMatches) -> Option<Vec<String>> {
        if let Kind::Switch { .. } = self.kind {
            return matches.get_flag(self.key).then(|| vec!["true".to_owned()]);
        }
        let values = matches.get_many::<String>(self.key)?;
        Some(values.cloned().collect())
    }

    pub(super) fn set_texts(&self, settings: &mut Settings, texts: &[&str]) -> Result<(), String> {
        if let Kind::List { set, .. } = self.kind {
            set(
                settings,
                texts.iter().map(|&text| text.to_owned()).collect(),
            );
            return Ok(());
        }
        let text = texts.last().copied().unwrap_or_default();
        let parsed = match self.kind {
            Kind::Count { .. } => text.parse().ok().map(Value::Integer),
            Kind::Seconds { .. } => text.parse().ok().map(Value::Float),
            Kind::Switch { .. } => text.parse().ok().map(Value::Boolean),
            _ => Some(Value::String(text.to_owned())),
        };
        let refused = || self.refusal(&format!("{text:?}"));
        self.set_value(settings, &parsed.ok_or_else(refused)?)
    }

    pub(super) fn set_value(&self, settings: &mut Settings, value: &Value) -> Result<(), String> {
        let accepted = match (&self.kind, value) {
            (Kind::Count { low, high, set, .. }, Value::Integer(integer)) => {
                let count = u64::try_from(*integer).ok();
                let count = count.filter(|count| (*low..=*high).contains(count));
                count.map(|count| set(settings, count)).is_some()
            }
            (Kind::Seconds { set, .. }, Value::Integer(_) | Value::Float(_)) => {
                let duration = duration(value);
                duration.map(|duration| set(settings, duration)).is_some()
            }
            (Kind::Text { set, .. } | Kind::Secret { set, .. }, Value::String(text)) => {
                set(settings, text)
            }
            (Kind::List { set, .. }, Value::Array(items)) => {
                let texts: Option<Vec<String>> = items
                    .iter()
                    .map(|item| item.as_str().map(str::to_owned))
                    .collect();
                texts.map(|texts| set(settings, texts)).is_some()
            }
            (Kind::Switch { set, .. }, Value::Boolean(value)) => {
                set(settings, *value);
                true
            }
            _ => false,
        };
        if accepted {
            Ok(())
        } else {
            Err(self.refusal(&value.to_string()))
        }
    }

    /// Why a value cannot be used.
    fn refusal(&self, value: &str) -> String {
        match &self.kind {
            Kind::Count { low, high, .. } => {
                format!("{value} is not an integer in [{low}, {high}]")
            }
            Kind::Seconds { .. } => {
                format!("{value} is not a number of seconds in (0, {MAX_SECONDS}]")
            }
            Kind::Text { expected, .. } => format!("{value} is not {expected}"),
            Kind::Secret { expected, .. } => format!("the value is not {expected}"),
            Kind::List { .. } => format!("{value} is not a list of strings"),
            Kind::Switch { .. } => format!("{value} is not true or false"),
        }
    }

    /// The value as TOML; none where the program chooses, and of a secret.
    pub(super) fn shown(&self, settings: &Settings) -> Option<String> {
        Some(match &self.kind {
            Kind::Count { get, .. } => get(settings)?.to_string(),
            Kind::Seconds { get, .. } => get(settings).as_secs_f64().to_string(),
            Kind::Text { get, .. } => Value::String(get(settings)?).to_string(),
            Kind::Secret { .. } => return None,
            Kind::List { get, .. } => Value::from(get(settings).to_vec()).to_string(),
            Kind::Switch { get, .. } => get(settings).to_string(),
        })
    }
}

/// The longest time that a setting may have: a year.
const MAX_SECONDS: f64 = 365.0 * 24.0 * 3600.0;

fn duration(value: &Value) -> Option<Duration> {
    let seconds = value
        .as_float()
        .or_else(|| value.as_integer().map(|integer| integer as f64))?;
    let usable = seconds > 0.0 && seconds <= MAX_SECONDS;
    usable.then(|| Duration::from_secs_f64(seconds))
}
