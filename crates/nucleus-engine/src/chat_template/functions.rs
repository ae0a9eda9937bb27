//! What chat templates call that Jinja does not have, or has otherwise.

use std::error::Error as _;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// A template's own refusal.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Raised {
    pub(super) message: String,
}

impl Raised {
    /// The refusal that is behind an error, if one is.
    pub(super) fn find(error: &Error) -> Option<&Self> {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(raised) = cause.downcast_ref() {
                return Some(raised);
            }
            source = cause.source();
        }
        None
    }
}

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_test("iterable", is_iterable);
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised { message }))
}

/// As in Python, where `None` is not iterable.
fn is_iterable(value: &Value) -> bool {
    !matches!(
        value.kind(),
        ValueKind::None | ValueKind::Number | ValueKind::Bool
    )
}

/// The time now, in UTC, by the format of Python's `strftime`. The prompt then depends on the clock: what must be
/// reproduced must be rendered once and kept.
fn strftime_now(format: &str) -> Result<String, Error> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    strftime(format, since.as_secs())
        .map_err(|message| Error::new(ErrorKind::InvalidOperation, message))
}

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment, taken apart.
struct Moment {
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// 1 to 366.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: usize,
    second_of_day: u64,
}

impl Moment {
    /// The moment that is so many seconds after the beginning of 1970, UTC.
    fn new(unix_seconds: u64) -> Self {
        const SECONDS_A_DAY: u64 = 86_400;
        let days = unix_seconds / SECONDS_A_DAY;
        let (year, day_of_year) = year(days);
        let (month, day) = month(day_of_year, is_leap(year));
        // 1970 began on a Thursday.
        let weekday = ((days + 4) % 7) as usize;
        Self {
            year,
            month,
            day,
            day_of_year: day_of_year + 1,
            weekday,
            second_of_day: unix_seconds % SECONDS_A_DAY,
        }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// The year of a day, and the days of that year before it. Whole cycles of 400 years are taken at once.
fn year(days: u64) -> (u64, u64) {
    const CYCLE_DAYS: u64 = 146_097;
    let (mut year, mut rest) = (1970 + days / CYCLE_DAYS * 400, days % CYCLE_DAYS);
    while rest >= 365 + u64::from(is_leap(year)) {
        rest -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    (year, rest)
}

/// The month and the day of it, both from 1.
fn month(day_of_year: u64, leap: bool) -> (u64, u64) {
    let lengths = [
        31,
        28 + u64::from(leap),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let (mut month, mut rest) = (1, day_of_year);
    for length in lengths {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (month, rest + 1)
}

/// A moment by a format of C's `strftime`, in English; the directives that templates use.
fn strftime(format: &str, unix_seconds: u64) -> Result<String, String> {
    let moment = Moment::new(unix_seconds);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let directive: String = match characters.next() {
            Some('-') => ['-'].into_iter().chain(characters.next()).collect(),
            next => next.into_iter().collect(),
        };
        let unknown = || format!("strftime_now does not know the directive %{directive}");
        text.push_str(&expand(&moment, &directive).ok_or_else(unknown)?);
    }
    Ok(text)
}

fn expand(moment: &Moment, directive: &str) -> Option<String> {
    let Moment {
        year,
        month,
        day,
        day_of_year,
        weekday,
        second_of_day,
    } = *moment;
    let (hour, minute, second) = (
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
    );
    let hour_of_12 = (hour + 11) % 12 + 1;
    let (day_name, month_name) = (DAYS[weekday], MONTHS[month as usize - 1]);
    Some(match directive {
        "Y" => year.to_string(),
        "y" => format!("{:02}", year % 100),
        "m" => format!("{month:02}"),
        "-m" => month.to_string(),
        "B" => month_name.to_owned(),
        "b" | "h" => month_name[..3].to_owned(),
        "d" => format!("{day:02}"),
        "-d" => day.to_string(),
        "e" => format!("{day:2}"),
        "j" => format!("{day_of_year:03}"),
        "A" => day_name.to_owned(),
        "a" => day_name[..3].to_owned(),
        "w" => weekday.to_string(),
        "H" => format!("{hour:02}"),
        "-H" => hour.to_string(),
        "I" => format!("{hour_of_12:02}"),
        "-I" => hour_of_12.to_string(),
        "M" => format!("{minute:02}"),
        "S" => format!("{second:02}"),
        "p" => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        "F" => format!("{year}-{month:02}-{day:02}"),
        "T" => format!("{hour:02}:{minute:02}:{second:02}"),
        "Z" => "UTC".to_owned(),
        "z" => "+0000".to_owned(),
        "%" => "%".to_owned(),
        _ => return None,
    })
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it, on one line or with an indent.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    const MAX_INDENT: usize = 16;
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson cannot escape what is not ASCII",
        ));
    }
    options.assert_all_used()?;
    let json = match indent {
        None => json(value, OneLine),
        Some(width) => json(
            value,
            PrettyFormatter::with_indent(" ".repeat(width.min(MAX_INDENT)).as_bytes()),
        ),
    };
    json.map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "tojson cannot write the value").with_source(error)
    })
}

fn json(value: &Value, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// What comes between two elements.
fn separate<W: ?Sized + io::Write>(writer: &mut W, first: bool) -> io::Result<()> {
    writer.write_all(if first { b"" } else { b", " })
}

/// A space after each comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let mut environment = Environment::new();
        add(&mut environment);
        environment.render_str(source, ()).unwrap()
    }

    #[test]
    fn known_moments() {
        // Seconds by `date -u -d ... +%s`.
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thursday 001"),
            (951_782_399, "2000-02-28 23:59:59 Monday 059"),
            (951_782_400, "2000-02-29 00:00:00 Tuesday 060"),
            (1_709_251_199, "2024-02-29 23:59:59 Thursday 060"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday 366"),
            (4_107_542_400, "2100-03-01 00:00:00 Monday 060"),
            (13_569_465_600, "2400-01-01 00:00:00 Saturday 001"),
        ] {
            assert_eq!(strftime("%F %T %A %j", seconds).unwrap(), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = Moment::new(0);
        for day in 1..200_000 {
            let moment = Moment::new(day * 86_400);
            let next_day = (moment.year, moment.month, moment.day)
                == (before.year, before.month, before.day + 1);
            let next_month =
                (moment.year, moment.month, moment.day) == (before.year, before.month + 1, 1);
            let next_year = (moment.year, moment.month, moment.day) == (before.year + 1, 1, 1)
                && before.month == 12;
            assert!(next_day || next_month || next_year, "day {day}");
            before = moment;
        }
    }

    #[test]
    fn directives() {
        let evening = 1_709_251_199;
        assert_eq!(
            strftime("%d %b %Y, %-d %B %y, %I:%M %p, %a %e %%", evening).unwrap(),
            "29 Feb 2024, 29 February 24, 11:59 PM, Thu 29 %"
        );
        assert_eq!(strftime("%-m/%-d %H %-I %Z", 0).unwrap(), "1/1 00 12 UTC");
        assert_eq!(
            strftime("%Q", 0).unwrap_err(),
            "strftime_now does not know the directive %Q"
        );
        assert_eq!(
            strftime("%-", 0).unwrap_err(),
            "strftime_now does not know the directive %-"
        );
        assert!(strftime("100%", 0).is_err());
    }

    #[test]
    fn the_time_is_now() {
        let year: u64 = render("{{ strftime_now('%Y') }}").parse().unwrap();
        assert!((2024..3000).contains(&year));
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(
            render(r#"{{ {"a": [1, 2.5, "é<b>'"], "b": none, "c": {}}|tojson }}"#),
            r#"{"a": [1, 2.5, "é<b>'"], "b": null, "c": {}}"#
        );
        assert_eq!(
            render(r#"{{ {"a": [1]}|tojson(indent=2) }}"#),
            "{\n  \"a\": [\n    1\n  ]\n}"
        );
        assert_eq!(render("{{ 'é'|tojson(ensure_ascii=false) }}"), "\"é\"");
    }

    #[test]
    fn options_of_json_that_are_not_known_are_refused() {
        let mut environment = Environment::new();
        add(&mut environment);
        for source in [
            "{{ 1|tojson(ensure_ascii=true) }}",
            "{{ 1|tojson(sort_keys=true) }}",
        ] {
            assert!(environment.render_str(source, ()).is_err(), "{source}");
        }
    }
}
