//! Where tokens are sampled.

use clap::{Arg, ArgMatches};

use crate::failure::usage;

/// A choice of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// A GPU if this build and this machine have one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(u32),
}

/// `--device` of a command that can sample on a GPU.
pub(crate) fn flag() -> Arg {
    Arg::new("device")
        .long("device")
        .value_name("DEVICE")
        .value_parser(parse)
        .default_value("auto")
        .help("Where to sample: auto, cpu, or cuda:N in a build with the feature cuda")
}

/// What [`flag`] said.
pub(crate) fn choice(matches: &ArgMatches) -> Device {
    *matches.get_one("device").expect("the flag has a default")
}

fn parse(text: &str) -> Result<Device, String> {
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|number| number.parse().ok())
            .map(Device::Cuda)
            .ok_or_else(|| "must be auto, cpu, or cuda: with a number, such as cuda:0".to_owned()),
    }
}

impl Device {
    /// The number of the CUDA device to use, `None` for the CPU.
    ///
    /// # Errors
    /// A CUDA device in a build that has no code for one.
    pub(crate) fn cuda(self) -> anyhow::Result<Option<u32>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Auto => Ok(first_cuda()),
            Self::Cuda(number) if cfg!(feature = "cuda") => Ok(Some(number)),
            Self::Cuda(number) => Err(usage(format!(
                "--device cuda:{number}: this build has no GPU code; build it with --features cuda"
            ))),
        }
    }
}

#[cfg(feature = "cuda")]
fn first_cuda() -> Option<u32> {
    nucleus_sampling::cuda::device_count()
        .ok()
        .filter(|count| *count > 0)
        .map(|_| 0)
}

#[cfg(not(feature = "cuda"))]
fn first_cuda() -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        assert_eq!(parse("auto"), Ok(Device::Auto));
        assert_eq!(parse("cpu"), Ok(Device::Cpu));
        assert_eq!(parse("cuda:1"), Ok(Device::Cuda(1)));
        for wrong in ["cuda", "cuda:", "cuda:x", "gpu", "cuda:-1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_gpu_code_says_so() {
        assert_eq!(Device::Auto.cuda().expect("the CPU"), None);
        let error = Device::Cuda(0).cuda().unwrap_err();
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }
}
