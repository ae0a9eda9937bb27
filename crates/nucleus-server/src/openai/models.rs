//! `GET /v1/models` and `GET /v1/models/{id}`: the one model there is.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::AppState;
use crate::error::ApiError;
use crate::json::quote;
use crate::openapi::{Endpoint, Group};

/// A list of models.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelList {
    object: &'static str,
    data: [ModelObject; 1],
}

/// A model.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelObject {
    id: String,
    object: &'static str,
    /// When the server began, in seconds of Unix time.
    created: u64,
    owned_by: &'static str,
    /// The model's context in tokens, under the name that vLLM uses.
    max_model_len: usize,
}

pub(super) fn endpoints() -> [Endpoint; 2] {
    [
        Endpoint::get("/v1/models", models)
            .group(Group::OpenAi)
            .says("Lists the models", "The one model that the worker runs.")
            .answers::<ModelList>(200, "The list"),
        Endpoint::get("/v1/models/{id}", model)
            .group(Group::OpenAi)
            .says(
                "Describes a model",
                "404 for any name but that of the model that runs.",
            )
            .answers::<ModelObject>(200, "The model")
            .refuses(&[400, 404]),
    ]
}

async fn models(State(state): State<AppState>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: [ModelObject::of(&state)],
    })
}

async fn model(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, ApiError> {
    let Path(id) = id.map_err(|_| {
        let path = "the path of this request".to_owned();
        ApiError::field("id", path, "UTF-8 in percent-encoding")
    })?;
    check(&id, &state)?;
    Ok(Json(ModelObject::of(&state)))
}

/// Refuses any name but that of the model that runs: another model would give another text.
pub(crate) fn check(id: &str, state: &AppState) -> Result<(), ApiError> {
    let served = &state.engine.spec().name;
    if id == served {
        return Ok(());
    }
    Err(ApiError::UnknownModel {
        model: quote(id),
        served: quote(served),
    })
}

impl ModelObject {
    fn of(state: &AppState) -> Self {
        let spec = state.engine.spec();
        Self {
            id: spec.name.clone(),
            object: "model",
            created: state.created,
            owned_by: "nucleus",
            max_model_len: spec.context_length,
        }
    }
}

/// A name for all that decides which tokens a seed gives: the program's version, the model and where it runs.
pub(crate) fn system_fingerprint(state: &AppState) -> String {
    let spec = state.engine.spec();
    let said = format!(
        "{} {spec:?} {}",
        env!("CARGO_PKG_VERSION"),
        state.engine.device()
    );
    format!("fp_{:016x}", fnv1a(said.as_bytes()))
}

/// FNV-1a, 64 bits: the same in every build, unlike the standard library's hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the reference implementation (draft-eastlake-fnv, appendix C).
    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
