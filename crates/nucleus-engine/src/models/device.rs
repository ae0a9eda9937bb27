//! Where a model computes.

use std::fmt;
use std::str::FromStr;

/// Where a model computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// On the host's processor.
    #[default]
    Cpu,
    /// On the CUDA device of that number.
    Cuda(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(device) => write!(f, "cuda:{device}"),
        }
    }
}

/// A device that is not written as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device is {text:?}, but must be cpu, cuda or cuda:NUMBER")]
pub struct DeviceParseError {
    /// What was written.
    pub text: String,
}

impl FromStr for Device {
    type Err = DeviceParseError;

    /// `cpu`, `cuda:1`, or `cuda` for `cuda:0`.
    fn from_str(text: &str) -> Result<Self, DeviceParseError> {
        let number = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            text => text
                .strip_prefix("cuda:")
                .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|number| number.parse().ok()),
        };
        let device = number.map(Self::Cuda);
        device.ok_or_else(|| DeviceParseError {
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_as_they_are_read() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(13)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:+1",
            "cuda:-1",
            "cuda:99999999999",
            "CPU",
        ] {
            let text = text.to_owned();
            assert_eq!(text.parse::<Device>(), Err(DeviceParseError { text }));
        }
    }
}
