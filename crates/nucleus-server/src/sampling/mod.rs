//! What sampling does and can do: `POST /v1/sampling/explain`, `GET /v1/sampling/params`.

mod catalogue;
mod explain;

use crate::openapi::Endpoint;

pub(crate) fn endpoints() -> [Endpoint; 2] {
    [explain::endpoint(), catalogue::endpoint()]
}
