//! What can go wrong between the sampler and the device.

use std::ffi::{CStr, c_int};
use std::fmt;

use super::sys;

/// An error of the CUDA sampler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No driver, or no device that it can use.
    #[error("no CUDA device can be used: {reason}")]
    NoDevice {
        /// What the runtime says.
        reason: String,
    },
    /// The device does not exist.
    #[error("device is {device}, but {}", Existing(*count))]
    Device {
        /// The number asked for.
        device: u32,
        /// How many there are.
        count: u32,
    },
    /// The kernels do not run on the device.
    #[error("{device} has {what}")]
    Unfit {
        /// Its name.
        device: String,
        /// What of it does not suffice, and what would.
        what: String,
    },
    /// A call of the runtime or the driver failed.
    #[error("{call}: {name}: {message}")]
    Runtime {
        /// The function.
        call: &'static str,
        /// The error's number.
        code: i32,
        /// The error's name, such as `cudaErrorMemoryAllocation`.
        name: String,
        /// What it means.
        message: String,
    },
    /// The rows cannot be one launch.
    #[error("{field} is {value}, but must be {range}")]
    Batch {
        /// What is wrong.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        range: String,
    },
    /// The kernel cannot serve this combination of parameters.
    #[error("row {row}: {reason}")]
    Unsupported {
        /// The row.
        row: usize,
        /// Which combination.
        reason: &'static str,
    },
}

/// How many devices there are, and what they are called.
struct Existing(u32);

impl fmt::Display for Existing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("there is none"),
            1 => f.write_str("there is only device 0"),
            count => write!(f, "there are {count}: it must be 0 to {}", count - 1),
        }
    }
}

/// The runtime's `cudaErrorInsufficientDriver` and `cudaErrorNoDevice`: there is nothing to run on.
const NOTHING_TO_RUN_ON: [c_int; 2] = [35, 100];

/// `cudaErrorMemoryAllocation`.
const OUT_OF_MEMORY: c_int = 2;

/// Errors after which every call of the process fails, as the runtime's documentation of each says ("the process must be terminated"):
/// ECC and NVLink errors, illegal address, launch timeout, assertion, stack, instruction, alignment, address space, program counter, launch
/// failure; and a context that is gone.
const STICKY: [c_int; 13] = [
    214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719,
];

impl CudaError {
    /// Whether the device had not the memory; nothing else is wrong then.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Runtime { code, .. } if *code == OUT_OF_MEMORY)
    }

    /// Whether nothing runs on the device any more in this process.
    #[must_use]
    pub fn loses_device(&self) -> bool {
        matches!(self, Self::Runtime { code, .. } if STICKY.contains(code))
    }

    /// The error of a call of the runtime, or of the driver, whose numbers are the same, that returned `code`.
    #[must_use]
    pub fn runtime(call: &'static str, code: i32) -> Self {
        // The runtime keeps it for whoever asks for its last error, which would take it for that of a later launch.
        sys::cudaGetLastError();
        let (name, message) = describe(code);
        if NOTHING_TO_RUN_ON.contains(&code) {
            return Self::NoDevice { reason: message };
        }
        Self::Runtime {
            call,
            code,
            name,
            message,
        }
    }
}

/// `Ok` if a runtime call succeeded.
pub(super) fn check(call: &'static str, code: c_int) -> Result<(), CudaError> {
    match code {
        0 => Ok(()),
        code => Err(CudaError::runtime(call, code)),
    }
}

fn describe(code: c_int) -> (String, String) {
    // SAFETY: the function reads nothing but its argument and returns a static string for every code.
    let name = unsafe { sys::cudaGetErrorName(code) };
    // SAFETY: as above.
    let message = unsafe { sys::cudaGetErrorString(code) };
    // SAFETY: both are static strings that end with a zero byte.
    let name = unsafe { CStr::from_ptr(name) };
    // SAFETY: as above.
    let message = unsafe { CStr::from_ptr(message) };
    (
        name.to_string_lossy().into_owned(),
        message.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_exist_are_counted() {
        let text = |count| CudaError::Device { device: 7, count }.to_string();
        assert_eq!(text(0), "device is 7, but there is none");
        assert_eq!(text(1), "device is 7, but there is only device 0");
        assert_eq!(text(4), "device is 7, but there are 4: it must be 0 to 3");
    }
}
