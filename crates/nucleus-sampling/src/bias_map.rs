//! Reading of `logit_bias`: ids are numbers or, as JSON keys must be, strings; an id named twice is refused.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// An optional map from token id to number.
pub(crate) fn deserialize<'de, D>(deserializer: D) -> Result<Option<BTreeMap<u32, f64>>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Option::<Entries>::deserialize(deserializer)?.map(|entries| entries.0))
}

struct Entries(BTreeMap<u32, f64>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from token id to number")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((TokenId(id), value)) = map.next_entry::<TokenId, f64>()? {
            if entries.insert(id, value).is_some() {
                return Err(Error::custom(format_args!(
                    "logit_bias: token id {id} is named twice"
                )));
            }
        }
        Ok(Entries(entries))
    }
}

/// A token id, as a number or as a string of digits.
struct TokenId(u32);

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TokenIdVisitor)
    }
}

struct TokenIdVisitor;

impl Visitor<'_> for TokenIdVisitor {
    type Value = TokenId;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token id")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<TokenId, E> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let id = digits.then(|| text.parse().ok()).flatten();
        id.map(TokenId).ok_or_else(|| {
            E::custom(format_args!(
                "logit_bias: {text:?} is not a token id (an integer from 0)"
            ))
        })
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<TokenId, E> {
        u32::try_from(id)
            .map(TokenId)
            .map_err(|_| E::custom(format_args!("logit_bias: {id} is not a token id")))
    }
}

#[cfg(test)]
mod tests {
    use serde::de::value::{Error as ValueError, MapDeserializer};

    use super::*;
    use crate::SamplingParams;

    fn read(json: &str) -> Result<SamplingParams, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn ids_are_strings_in_json_and_null_is_absent() {
        let params = read(r#"{"logit_bias": {"7": -2.5, "0": 1}}"#).unwrap();
        assert_eq!(params.logit_bias, Some([(7, -2.5), (0, 1.0)].into()));
        assert_eq!(
            read(r#"{"logit_bias": null}"#).unwrap(),
            SamplingParams::default()
        );
    }

    #[test]
    fn a_bad_id_is_named() {
        for id in ["x", "-1", "+1", "", "1.5", "4294967296"] {
            let error = read(&format!(r#"{{"logit_bias": {{"{id}": 1}}}}"#)).unwrap_err();
            assert!(
                error.contains(&format!("{id:?} is not a token id")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_map_from_ids_to_numbers_is_told_so() {
        let error = read(r#"{"logit_bias": [1]}"#).unwrap_err();
        assert!(error.contains("a map from token id to number"), "{error}");
        let error = read(r#"{"logit_bias": {"1": "2"}}"#).unwrap_err();
        assert!(error.contains("invalid type: string"), "{error}");
    }

    /// Some formats have numbers as keys.
    #[test]
    fn ids_may_be_numbers() {
        let read = |id| Entries::deserialize(MapDeserializer::new([(id, 1.5f64)].into_iter()));
        let Entries(entries) = read(7u64).unwrap();
        assert_eq!(entries, [(7, 1.5)].into());
        let error: ValueError = read(1 << 32).err().unwrap();
        assert!(
            error.to_string().contains("4294967296 is not a token id"),
            "{error}"
        );
        let of_bool = MapDeserializer::<_, ValueError>::new([(true, 1.5f64)].into_iter());
        let error = Entries::deserialize(of_bool).err().unwrap();
        assert!(error.to_string().contains("expected a token id"), "{error}");
    }

    #[test]
    fn an_id_named_twice_is_refused() {
        let error = read(r#"{"logit_bias": {"1": 1, "01": 2}}"#).unwrap_err();
        assert!(error.contains("token id 1 is named twice"), "{error}");
    }
}
