//! `POST /cancel`: ends a job.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::app::AppState;
use crate::body::JsonObject;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::jobs::JobId;
use crate::openapi::{Bounds, Endpoint, Group, Object};

/// What a cancelled job's caller is told. The job's stream ends by itself, with `stop_reason` `cancelled`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Cancelled {
    job_id: JobId,
    /// Whether a job of that name was running.
    was_running: bool,
}

pub(crate) fn endpoints() -> [Endpoint; 1] {
    [Endpoint::post("/cancel", cancel)
        .group(Group::Nucleus)
        .says(
            "Ends a job",
            "The job's stream ends with what there is, within one step. Cancelling twice, or what has ended, is no error.",
        )
        .takes(schema)
        .answers::<Cancelled>(202, "Whether a job of that name was running")]
}

fn schema(_: &Bounds<'_>) -> Object {
    Object::strict()
        .required("job_id", JobId::schema(), "The name of a job.")
        .example(json!({"job_id": "tale-1"}))
}

async fn cancel(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<Cancelled>), ApiError> {
    let mut fields = Fields::new(body);
    let job_id = fields
        .string("job_id")?
        .ok_or_else(|| ApiError::MissingField {
            param: "job_id",
            expected: "the name of a job".into(),
        })?;
    let job_id = JobId::new(job_id)?;
    fields.finish("job_id")?;
    let was_running = state.jobs.cancel(&job_id);
    Ok((
        StatusCode::ACCEPTED,
        Json(Cancelled {
            job_id,
            was_running,
        }),
    ))
}
