//! `--device`: where to compute, one definition for every command.

use std::fmt;
use std::str::FromStr;

use clap::{Arg, ArgMatches};
#[cfg(feature = "cuda")]
use nucleus_engine::models::DevicePlan;
use nucleus_engine::models::{Device, Weights};

use crate::failure::usage;
use crate::terminal::Notes;

/// A choice of `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The first GPU if this build and this machine have one and the model fits, else the CPU.
    #[default]
    Auto,
    /// This one and no other.
    Only(Device),
}

/// What [`Choice`] is written as.
pub(crate) const EXPECTED: &str = "auto, cpu, or cuda: with a number, such as cuda:0";

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text
                .parse()
                .map(Self::Only)
                .map_err(|_| format!("must be {EXPECTED}")),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(device) => device.fmt(f),
        }
    }
}

/// `--device`.
pub(crate) fn flag() -> Arg {
    Arg::new("device")
        .long("device")
        .value_name("DEVICE")
        .value_parser(|text: &str| text.parse::<Choice>())
        .default_value("auto")
        .help("Where to compute: auto, cpu, or cuda:N in a build with the feature cuda")
}

/// What [`flag`] said.
pub(crate) fn choice(matches: &ArgMatches) -> Choice {
    *matches.get_one("device").expect("the flag has a default")
}

impl Choice {
    /// The device that samples rows of logits.
    ///
    /// # Errors
    /// A CUDA device in a build that has no code for one.
    pub(crate) fn for_rows(self) -> anyhow::Result<Device> {
        match self {
            Self::Auto => Ok(first_cuda().unwrap_or_default()),
            Self::Only(device) => self.built(device),
        }
    }

    /// The device for a model: `plan` says what the model would take of a GPU. What it takes, or why there is none, is noted.
    ///
    /// # Errors
    /// A CUDA device in a build that has no code for one, or one that the model does not fit on.
    pub(crate) fn for_model(self, model: &Model<'_>, notes: Notes) -> anyhow::Result<Device> {
        match self {
            Self::Auto => Ok(model.auto(notes)),
            Self::Only(device) => {
                let device = self.built(device)?;
                model.note(device, notes)?;
                Ok(device)
            }
        }
    }

    fn built(self, device: Device) -> anyhow::Result<Device> {
        if cfg!(feature = "cuda") || device == Device::Cpu {
            Ok(device)
        } else {
            Err(usage(format!(
                "--device {device}: this build has no GPU code; build it with --features cuda"
            )))
        }
    }
}

/// A model that is to be placed.
pub(crate) struct Model<'a> {
    pub(crate) weights: Weights<'a>,
    /// How it would be loaded on a device.
    #[cfg_attr(
        not(feature = "cuda"),
        allow(dead_code, reason = "there is one device")
    )]
    pub(crate) options: &'a dyn Fn(Device) -> nucleus_engine::models::LoadOptions<'static>,
}

#[cfg(feature = "cuda")]
impl Model<'_> {
    fn plan(&self, device: u32) -> anyhow::Result<DevicePlan> {
        let options = (self.options)(Device::Cuda(device));
        let plan = nucleus_engine::models::device_plan(self.weights, device, &options)?;
        Ok(plan)
    }

    fn auto(&self, notes: Notes) -> Device {
        let plan = match nucleus_sampling::cuda::device_count() {
            Ok(_) => self.plan(0).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match plan {
            Ok(plan) => {
                notes.say(&placed(0, &plan));
                Device::Cuda(0)
            }
            Err(reason) => {
                notes.say(&format!("computing on the CPU: {reason}"));
                Device::Cpu
            }
        }
    }

    fn note(&self, device: Device, notes: Notes) -> anyhow::Result<()> {
        if let Device::Cuda(number) = device {
            notes.say(&placed(number, &self.plan(number)?));
        }
        Ok(())
    }
}

#[cfg(feature = "cuda")]
fn placed(device: u32, plan: &DevicePlan) -> String {
    format!("computing on cuda:{device}, {plan}")
}

/// There is nothing but the CPU, and so nothing to say.
#[cfg(not(feature = "cuda"))]
impl Model<'_> {
    fn auto(&self, _: Notes) -> Device {
        let _ = self.weights;
        Device::Cpu
    }

    fn note(&self, _: Device, _: Notes) -> anyhow::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "cuda")]
fn first_cuda() -> Option<Device> {
    let first = nucleus_sampling::cuda::device_info(0).ok()?;
    first.check_models().ok().map(|()| Device::Cuda(0))
}

#[cfg(not(feature = "cuda"))]
fn first_cuda() -> Option<Device> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        for (text, choice) in [
            ("auto", Choice::Auto),
            ("cpu", Choice::Only(Device::Cpu)),
            ("cuda:1", Choice::Only(Device::Cuda(1))),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        for wrong in ["cuda:", "cuda:x", "gpu", "cuda:-1", ""] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_gpu_code_says_so() {
        assert_eq!(Choice::Auto.for_rows().expect("the CPU"), Device::Cpu);
        let error = Choice::Only(Device::Cuda(0)).for_rows().unwrap_err();
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }
}
