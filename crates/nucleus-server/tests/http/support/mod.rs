//! A worker over a scripted model, by itself (`Rig`) and behind a socket (`net`).

mod model;
pub(crate) mod net;
pub(crate) mod schema;
mod sse;

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::StreamExt;
use nucleus_engine::chat_template::ChatTemplate;
use nucleus_engine::generate::{Engine, EngineOptions, EngineThread, Load};
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use nucleus_server::{AppState, Limits, ServerConfig, app};
use serde_json::Value;
use tower::ServiceExt;

pub(crate) use model::{Gate, GateGuard, Reply, ScriptedModel};
pub(crate) use sse::{SseEvent, SseParser, Transcript};

/// What every request to a scripted model says.
pub(crate) const PROMPT: &str = "Once upon a time";

/// Long enough for anything that is going to happen at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The bundled model's file.
pub(crate) const MODEL_FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
);

/// A worker without a socket.
pub(crate) struct Rig {
    pub(crate) engine: Engine,
    pub(crate) gate: GateGuard,
    pub(crate) app: Router,
    pub(crate) state: AppState,
}

/// How a rig differs from the usual.
pub(crate) struct RigOptions {
    pub(crate) config: ServerConfig,
    pub(crate) engine: EngineOptions,
    /// Whether the model waits for [`Gate::allow`].
    pub(crate) gated: bool,
    /// Tokens in the prompt that the script continues.
    pub(crate) prompt_len: usize,
}

impl Default for RigOptions {
    fn default() -> Self {
        let engine = EngineOptions::default();
        Self {
            config: ServerConfig::default(),
            engine,
            gated: false,
            prompt_len: encode_prompt(PROMPT).len(),
        }
    }
}

impl RigOptions {
    /// The usual, configured otherwise.
    pub(crate) fn configured(config: ServerConfig) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// The usual, within other bounds.
    pub(crate) fn limited(limits: Limits) -> Self {
        Self::configured(ServerConfig {
            limits,
            ..ServerConfig::default()
        })
    }
}

impl Rig {
    /// A worker whose model follows a script.
    pub(crate) fn new(script: impl FnMut(usize) -> Reply + Send + 'static) -> Self {
        Self::with(RigOptions::default(), script)
    }

    /// A worker whose model steps only when its gate says so.
    pub(crate) fn gated(script: impl FnMut(usize) -> Reply + Send + 'static) -> Self {
        Self::with(
            RigOptions {
                gated: true,
                ..RigOptions::default()
            },
            script,
        )
    }

    pub(crate) fn with(
        options: RigOptions,
        script: impl FnMut(usize) -> Reply + Send + 'static,
    ) -> Self {
        let (engine, _, gate) = scripted_engine(&options, script);
        let state = AppState::new(engine.clone(), options.config);
        let state = state.with_chat_template(Some(chat_template()));
        Self {
            engine,
            gate,
            app: app(state.clone()),
            state,
        }
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self
            .app
            .clone()
            .oneshot(request)
            .await
            .expect("the service is infallible");
        let (head, body) = response.into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            body: body.into_data_stream(),
        }
    }

    /// Sends JSON.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_raw(path, body.to_string()).await
    }

    /// Sends what may or may not be JSON, as JSON.
    pub(crate) async fn post_raw(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(request(Method::POST, path, body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, Body::empty())).await
    }

    /// A whole stream of `/execute`, checked.
    pub(crate) async fn execute(&self, body: &Value) -> Transcript {
        self.post("/execute", body).await.transcript().await
    }

    /// A request while the model steps, one step a millisecond: the engine takes requests between two steps only.
    pub(crate) async fn execute_while_stepping(&self, body: &Value) -> Answer {
        let mut answer = pin!(self.post("/execute", body));
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                () = tokio::time::sleep(Duration::from_millis(1)) => self.gate.allow(1),
            }
        }
    }

    /// Waits until the engine's load is as wanted.
    pub(crate) async fn load_until(&self, wanted: impl Fn(Load) -> bool) {
        let reached = async {
            while !wanted(self.engine.load()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        assert!(reached.is_ok(), "{:?}", self.engine.load());
    }

    /// Waits until the engine has nothing to do and all its memory is free.
    pub(crate) async fn idle(&self) {
        self.load_until(|load| load.running == 0 && load.waiting == 0 && load.used_blocks == 0)
            .await;
    }

    /// The worker takes requests still: health says so and the next one is served.
    pub(crate) async fn assert_alive(&self) {
        assert_eq!(self.get("/health").await.status, StatusCode::OK);
        let body = serde_json::json!({"prompt": PROMPT, "max_tokens": 1, "temperature": 0});
        assert_eq!(self.execute(&body).await.tokens.len(), 1);
    }
}

/// An engine over a scripted model.
pub(crate) fn scripted_engine(
    options: &RigOptions,
    script: impl FnMut(usize) -> Reply + Send + 'static,
) -> (Engine, EngineThread, GateGuard) {
    let tokenizer = tokenizer();
    let gate = Gate::default();
    if !options.gated {
        gate.open();
    }
    let vocab_size = tokenizer.vocab_size();
    let script = Box::new(script);
    let model = ScriptedModel::new(vocab_size, options.prompt_len, script, gate.clone());
    let (engine, thread) = Engine::start(Box::new(model), tokenizer, options.engine).unwrap();
    (engine, thread, GateGuard(gate))
}

/// A request of a client on this machine.
pub(crate) fn request(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost:8080")
        .header("content-type", "application/json")
        .body(body.into())
        .expect("a request")
}

/// A response whose body has not been read.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: BodyDataStream,
}

impl Answer {
    pub(crate) async fn bytes(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await {
            bytes.extend_from_slice(&chunk);
        }
        bytes
    }

    pub(crate) async fn json(self) -> Value {
        serde_json::from_slice(&self.bytes().await).expect("the body is JSON")
    }

    /// The error: its status and what the body says, which must have the four fields.
    pub(crate) async fn error(self) -> (u16, ErrorFields) {
        let status = self.status.as_u16();
        assert_eq!(self.headers["content-type"], "application/json");
        (status, ErrorFields::of(&self.json().await))
    }

    pub(crate) async fn transcript(self) -> Transcript {
        assert_eq!(self.status, StatusCode::OK);
        let mut stream = self.stream();
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event);
        }
        assert!(
            stream.parser.is_empty(),
            "the stream ends in the middle of an event"
        );
        Transcript::of(events)
    }

    /// The events, one at a time.
    pub(crate) fn stream(self) -> EventStream {
        assert_eq!(self.status, StatusCode::OK);
        assert_eq!(self.headers["content-type"], "text/event-stream");
        EventStream {
            answer: self,
            parser: SseParser::default(),
            ready: Vec::new().into_iter(),
        }
    }

    /// What comes next.
    pub(crate) async fn next_chunk(&mut self) -> Bytes {
        self.chunk().await.expect("the body goes on")
    }

    async fn chunk(&mut self) -> Option<Bytes> {
        let next = tokio::time::timeout(PATIENCE, self.body.next()).await;
        next.expect("the body goes on")
            .map(|chunk| chunk.expect("the body can be read"))
    }
}

/// What an error says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ErrorFields {
    pub(crate) message: String,
    pub(crate) kind: String,
    pub(crate) param: Option<String>,
    pub(crate) code: String,
}

impl ErrorFields {
    pub(crate) fn of(body: &Value) -> Self {
        let error = body["error"].as_object().expect("an error object");
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        let text = |field: &str| error[field].as_str().map(str::to_owned);
        Self {
            message: text("message").expect("a message"),
            kind: text("type").expect("a type"),
            param: text("param"),
            code: text("code").expect("a code"),
        }
    }
}

/// The events of a response, one at a time. Dropping it is what a client does who goes away.
pub(crate) struct EventStream {
    answer: Answer,
    parser: SseParser,
    ready: std::vec::IntoIter<SseEvent>,
}

impl EventStream {
    pub(crate) async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.next() {
                return Some(event);
            }
            let chunk = self.answer.chunk().await?;
            self.ready = self.parser.push(&chunk).into_iter();
        }
    }

    /// The next `count` events.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<SseEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.expect("the stream goes on"));
        }
        events
    }

    /// What is left of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<SseEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    pub(crate) fn comments(&self) -> usize {
        self.parser.comments
    }
}

/// The bundled model's tokenizer.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    Arc::clone(TOKENIZER.get_or_init(load_tokenizer))
}

fn load_tokenizer() -> Arc<Tokenizer> {
    let file = ModelFile::open(MODEL_FILE).expect("the bundled model can be read");
    Arc::new(Tokenizer::from_gguf(file.metadata()).expect("its tokenizer is sound"))
}

/// The bundled model's chat template.
pub(crate) fn chat_template() -> ChatTemplate {
    static TEMPLATE: OnceLock<ChatTemplate> = OnceLock::new();
    TEMPLATE.get_or_init(load_chat_template).clone()
}

fn load_chat_template() -> ChatTemplate {
    let file = ModelFile::open(MODEL_FILE).expect("the bundled model can be read");
    let template = ChatTemplate::from_gguf(file.metadata()).expect("its template is sound");
    template.expect("it has a template")
}

/// The tokens of a prompt, as the server makes them.
pub(crate) fn encode_prompt(text: &str) -> Vec<u32> {
    let tokenizer = tokenizer();
    let options = EncodeOptions {
        add_bos: tokenizer.add_bos(),
        parse_special: true,
        ..EncodeOptions::default()
    };
    tokenizer.encode(text, options).expect("a short text")
}

/// The tokens of a text that continues another.
pub(crate) fn tokens(text: &str) -> Vec<u32> {
    tokenizer()
        .encode(text, EncodeOptions::default())
        .expect("a short text")
}

/// A script that continues the prompt with a text, then ends.
pub(crate) fn text(text: &str) -> impl FnMut(usize) -> Reply + Send + use<> {
    let ids = tokens(text);
    let end = tokenizer().end_of_generation()[0];
    move |at| Reply::Token(ids.get(at).copied().unwrap_or(end))
}

/// A script that never ends: one token over and over.
pub(crate) fn forever() -> impl FnMut(usize) -> Reply + Send {
    let id = tokens(" and")[0];
    move |_| Reply::Token(id)
}
