//! The driver and the GPUs.

use serde_json::{Value, json};

/// The driver, and what it drives.
pub(super) struct Gpu {
    #[cfg(feature = "cuda")]
    driver: Result<nucleus_sampling::cuda::CudaVersion, String>,
    #[cfg(feature = "cuda")]
    devices: Vec<cuda::Found>,
    /// The driver's own words, in a build that cannot use it.
    #[cfg(not(feature = "cuda"))]
    unused: Option<String>,
}

#[cfg(not(feature = "cuda"))]
impl Gpu {
    pub(super) fn find() -> Self {
        // Linux's kernel module says which it is.
        let told = std::fs::read_to_string("/proc/driver/nvidia/version");
        let unused = told
            .ok()
            .and_then(|told| told.lines().next().map(str::to_owned));
        Self { unused }
    }

    pub(super) fn build_json(&self) -> Value {
        Value::Null
    }

    pub(super) fn driver_json(&self) -> Value {
        json!({ "cuda": null, "says": self.unused })
    }

    pub(super) fn devices_json(&self) -> Value {
        json!([])
    }

    pub(super) fn build_text(&self) -> String {
        "none: this build has no feature cuda".to_owned()
    }

    pub(super) fn driver_text(&self) -> String {
        match &self.unused {
            Some(told) => format!("{told}; this build does not use it"),
            None => "none that this build looks for".to_owned(),
        }
    }

    pub(super) fn devices_text(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

#[cfg(feature = "cuda")]
impl Gpu {
    pub(super) fn find() -> Self {
        use nucleus_sampling::cuda::{device_count, driver_version};
        let driver = match driver_version() {
            Ok(Some(version)) => device_count()
                .map(|_| version)
                .map_err(|error| error.to_string()),
            Ok(None) => Err("no driver".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let count = driver.as_ref().map_or(0, |_| device_count().unwrap_or(0));
        Self {
            driver,
            devices: (0..count).map(cuda::Found::look).collect(),
        }
    }

    pub(super) fn build_json(&self) -> Value {
        json!({ "runtime": cuda::runtime(), "archs": cuda::archs() })
    }

    pub(super) fn driver_json(&self) -> Value {
        match &self.driver {
            Ok(version) => json!({ "cuda": version.to_string(), "says": null }),
            Err(error) => json!({ "cuda": null, "says": error }),
        }
    }

    pub(super) fn devices_json(&self) -> Value {
        self.devices.iter().map(cuda::Found::to_json).collect()
    }

    pub(super) fn build_text(&self) -> String {
        format!(
            "CUDA {}, for compute capability {}",
            cuda::runtime(),
            cuda::archs().join(", ")
        )
    }

    pub(super) fn driver_text(&self) -> String {
        match &self.driver {
            Ok(version) => format!("CUDA {version}"),
            Err(error) => error.clone(),
        }
    }

    pub(super) fn devices_text(&self) -> Vec<(String, String)> {
        let text = |found: &cuda::Found| (format!("cuda:{}", found.device), found.to_text());
        self.devices.iter().map(text).collect()
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use nucleus_sampling::cuda::{
        CudaError, CudaOptions, CudaSampler, DeviceInfo, DeviceMemory, compiled_archs, device_info,
        device_memory, runtime_version,
    };
    use nucleus_sampling::{
        CpuSampler, LogitsRow, Row, SampledToken, Sampler, SamplerState, SamplingParams, VocabInfo,
    };
    use serde_json::{Value, json};

    /// Width of the row that is drawn from.
    const VOCAB: u32 = 4096;

    /// A device that was looked at.
    pub(super) struct Found {
        pub(super) device: u32,
        looked: Result<Looked, CudaError>,
    }

    struct Looked {
        info: DeviceInfo,
        memory: DeviceMemory,
        /// Whether the sampler draws what the CPU's does.
        sampler: Result<(), String>,
    }

    /// How the kernels come to run on a device.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Code {
        /// They are compiled for it.
        Machine,
        /// The driver compiles them when they are loaded.
        Intermediate,
        /// Not at all.
        None,
    }

    impl Code {
        /// Machine code runs on its own compute capability and later minor ones; intermediate code on all later ones.
        fn of((major, minor): (u32, u32), archs: impl Iterator<Item = u32> + Clone) -> Self {
            let device = 10 * major + minor;
            let is_own = |arch: u32| arch / 10 == major && arch <= device;
            match archs.clone().min() {
                _ if archs.clone().any(is_own) => Self::Machine,
                Some(oldest) if oldest <= device => Self::Intermediate,
                _ => Self::None,
            }
        }

        fn name(self) -> &'static str {
            match self {
                Self::Machine => "machine",
                Self::Intermediate => "intermediate",
                Self::None => "none",
            }
        }
    }

    impl Found {
        pub(super) fn look(device: u32) -> Self {
            let looked = device_info(device).and_then(|info| {
                Ok(Looked {
                    info,
                    memory: device_memory(device)?,
                    sampler: check_sampler(device),
                })
            });
            Self { device, looked }
        }

        pub(super) fn to_json(&self) -> Value {
            let device = format!("cuda:{}", self.device);
            match &self.looked {
                Ok(looked) => json!({
                    "device": device,
                    "name": looked.info.name,
                    "compute_capability": looked.capability(),
                    "multiprocessors": looked.info.multiprocessors,
                    "total_bytes": looked.memory.total_bytes,
                    "free_bytes": looked.memory.free_bytes,
                    "code": looked.code().name(),
                    "kernels": looked.info.check_models().err().map_or("run".to_owned(), |error| error.to_string()),
                    "sampler": looked.sampler.as_ref().err().map_or("as the CPU's", String::as_str),
                }),
                Err(error) => json!({ "device": device, "error": error.to_string() }),
            }
        }

        pub(super) fn to_text(&self) -> String {
            let looked = match &self.looked {
                Ok(looked) => looked,
                Err(error) => return error.to_string(),
            };
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let code = match looked.code() {
                Code::Machine => "machine code for it",
                Code::Intermediate => "intermediate code, which the driver compiles",
                Code::None => "no code for it",
            };
            let sampler = match (looked.info.check_sampler(), &looked.sampler) {
                (Err(error), _) => format!("neither models nor the sampler run on it: {error}"),
                (Ok(()), Ok(())) => "the sampler draws what the CPU's does".to_owned(),
                (Ok(()), Err(error)) => format!("the sampler does not work: {error}"),
            };
            let models = match (looked.info.check_sampler(), looked.info.check_models()) {
                (Ok(()), Err(error)) => format!("; models do not run on it: {error}"),
                _ => String::new(),
            };
            format!(
                "{}, compute capability {}, {:.1} GiB, {:.1} free; {code}; {sampler}{models}",
                looked.info.name,
                looked.capability(),
                gib(looked.memory.total_bytes),
                gib(looked.memory.free_bytes),
            )
        }
    }

    impl Looked {
        fn capability(&self) -> String {
            let (major, minor) = self.info.compute_capability;
            format!("{major}.{minor}")
        }

        fn code(&self) -> Code {
            let archs: Vec<u32> = compiled_archs().collect();
            Code::of(self.info.compute_capability, archs.iter().copied())
        }
    }

    /// The compute capabilities that there is machine code for.
    pub(super) fn archs() -> Vec<String> {
        compiled_archs()
            .map(|arch| format!("{}.{}", arch / 10, arch % 10))
            .collect()
    }

    pub(super) fn runtime() -> String {
        runtime_version().map_or_else(|error| error.to_string(), |version| version.to_string())
    }

    /// Draws a token from one row on the device and on the CPU.
    fn check_sampler(device: u32) -> Result<(), String> {
        let params = SamplingParams {
            seed: Some(1),
            temperature: Some(0.8),
            top_k: Some(40),
            top_p: Some(0.95),
            repetition_penalty: Some(1.1),
            ..SamplingParams::default()
        };
        let params = params.validate(&VocabInfo::new(VOCAB));
        let params = params.map_err(|error| error.to_string())?;
        let state = SamplerState::new(&params, &[1, 2, 3]);
        // Any logits do: these go up and down between 0 and 10.
        let logits: Vec<f32> = (0..VOCAB)
            .map(|id| (id.wrapping_mul(2_654_435_761) % 10_007) as f32 / 1000.0)
            .collect();
        let row = Row::new(LogitsRow::F32(&logits), &params, &state);
        let options = CudaOptions {
            device,
            ..CudaOptions::default()
        };
        let drawn = CudaSampler::new(options).and_then(|mut sampler| sampler.sample(&row));
        let drawn = drawn.map_err(|error| error.to_string())?;
        let expected = CpuSampler::new().sample(&row);
        let bits =
            |token: &SampledToken| (token.token_id, token.logprob.to_bits(), token.kept_count);
        if bits(&drawn) == bits(&expected) {
            Ok(())
        } else {
            Err(format!("it draws {drawn:?}, the CPU's {expected:?}"))
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn code_runs_on_its_own_and_on_later_devices() {
            let code = |device| Code::of(device, [86, 90, 100].into_iter());
            assert_eq!(code((9, 0)), Code::Machine);
            assert_eq!(code((10, 3)), Code::Machine);
            assert_eq!(code((8, 9)), Code::Machine);
            assert_eq!(code((12, 0)), Code::Intermediate);
            assert_eq!(code((8, 0)), Code::None);
        }
    }
}
