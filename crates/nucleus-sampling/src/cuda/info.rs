//! What can be known of the driver, the devices and this build without running anything on them.

use std::ffi::c_int;
use std::fmt;

use super::device::{check_device, make_current};
use super::error::{CudaError, check};
use super::layout::DeviceDescription;
use super::sys;

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// 13 of 13.0.
    pub major: u32,
    /// 0 of 13.0.
    pub minor: u32,
}

impl CudaVersion {
    /// A version as the runtime writes it: 13000 is 13.0.
    const fn of(number: c_int) -> Self {
        let number = number.unsigned_abs();
        Self {
            major: number / 1000,
            minor: number % 1000 / 10,
        }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// Its compute capability, such as (9, 0).
    pub compute_capability: (u32, u32),
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// The most bytes of shared memory that a block can have.
    pub shared_bytes: u32,
    /// Bytes of its memory.
    pub total_bytes: u64,
}

/// What kernels take of a device.
struct Needs {
    /// Whose they are.
    kernels: &'static str,
    /// The least compute capability.
    capability: (u32, u32),
    /// Bytes of shared memory that a block takes at most.
    shared_bytes: u32,
}

/// Reductions over a warp, and what every block of that capability or a later one may have.
const SAMPLER: Needs = Needs {
    kernels: "the sampler's kernels",
    capability: (8, 0),
    shared_bytes: 99 << 10,
};
/// Clusters and the bulk copy engine.
const MODELS: Needs = Needs {
    kernels: "the models' kernels",
    capability: (9, 0),
    shared_bytes: 227 << 10,
};

impl DeviceInfo {
    /// Whether the sampler can run on the device, of which this build may or may not have code. On one without clusters, or with less than 227 KiB of shared
    /// memory a block, it is slower.
    ///
    /// # Errors
    /// [`CudaError::Unfit`] for one with a compute capability below 8.0, or with less than 99 KiB of shared memory a block.
    pub fn check_sampler(&self) -> Result<(), CudaError> {
        self.check(&SAMPLER)
    }

    /// The same of a model's kernels.
    ///
    /// # Errors
    /// [`CudaError::Unfit`] for one with a compute capability below 9.0, or with less than 227 KiB of shared memory a block, such as GeForce and
    /// workstation GPUs of compute capability 12.0.
    pub fn check_models(&self) -> Result<(), CudaError> {
        self.check(&MODELS)
    }

    fn check(&self, needs: &Needs) -> Result<(), CudaError> {
        let unfit = |what| {
            Err(CudaError::Unfit {
                device: self.name.clone(),
                what,
            })
        };
        let (kernels, (major, minor)) = (needs.kernels, self.compute_capability);
        if self.compute_capability < needs.capability {
            let (least, sub) = needs.capability;
            return unfit(format!(
                "compute capability {major}.{minor}; {kernels} need {least}.{sub} or later"
            ));
        }
        if self.shared_bytes < needs.shared_bytes {
            return unfit(format!(
                "{} KiB of shared memory a block (compute capability {major}.{minor}); {kernels} need {} KiB",
                self.shared_bytes >> 10,
                needs.shared_bytes >> 10
            ));
        }
        Ok(())
    }
}

/// A device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that nobody has allocated, in this process or another.
    pub free_bytes: u64,
    /// All bytes that can be.
    pub total_bytes: u64,
}

/// The newest version of CUDA that the driver knows; `None` without a driver.
///
/// # Errors
/// [`CudaError::Runtime`] if the runtime cannot be asked.
pub fn driver_version() -> Result<Option<CudaVersion>, CudaError> {
    let mut version: c_int = 0;
    // SAFETY: the pointer is to a live integer.
    let code = unsafe { sys::cudaDriverGetVersion(&raw mut version) };
    check("cudaDriverGetVersion", code)?;
    Ok((version != 0).then(|| CudaVersion::of(version)))
}

/// The version of CUDA that this build was made with.
///
/// # Errors
/// [`CudaError::Runtime`] if the runtime cannot be asked.
pub fn runtime_version() -> Result<CudaVersion, CudaError> {
    let mut version: c_int = 0;
    // SAFETY: the pointer is to a live integer.
    let code = unsafe { sys::cudaRuntimeGetVersion(&raw mut version) };
    check("cudaRuntimeGetVersion", code)?;
    Ok(CudaVersion::of(version))
}

/// The compute capabilities that this build has machine code for, as nvcc writes them: 90 is 9.0. Others from the lowest one on compile intermediate
/// code, that of the lowest or the highest.
pub fn compiled_archs() -> impl Iterator<Item = u32> {
    env!("NUCLEUS_CUDA_ARCHS_BUILT")
        .split(',')
        .filter_map(|number| number.parse().ok())
}

/// What a device is.
///
/// # Errors
/// [`CudaError::NoDevice`] without a driver or a device, [`CudaError::Device`] if the device does not exist.
pub fn device_info(device: u32) -> Result<DeviceInfo, CudaError> {
    check_device(device)?;
    let mut description = DeviceDescription {
        total_bytes: 0,
        major: 0,
        minor: 0,
        multiprocessors: 0,
        shared_bytes: 0,
        reserved: 0,
        name_bytes: 0,
        name: [0; 256],
    };
    // SAFETY: the pointer is to a live description, which the function fills.
    let code = unsafe { sys::sampling_describe_device(device as c_int, &raw mut description) };
    check("cudaGetDeviceProperties", code)?;
    let name = &description.name[..description.name_bytes as usize];
    Ok(DeviceInfo {
        name: String::from_utf8_lossy(name).into_owned(),
        compute_capability: (description.major, description.minor),
        multiprocessors: description.multiprocessors,
        shared_bytes: description.shared_bytes,
        total_bytes: description.total_bytes,
    })
}

/// How much of a device's memory is free. Makes the device ready for use, which takes memory of it, if it was not before.
///
/// # Errors
/// As [`device_info`], and [`CudaError::Runtime`] if the device fails.
pub fn device_memory(device: u32) -> Result<DeviceMemory, CudaError> {
    make_current(device)?;
    let (mut free, mut total) = (0, 0);
    // SAFETY: the pointers are to live integers.
    let code = unsafe { sys::cudaMemGetInfo(&raw mut free, &raw mut total) };
    check("cudaMemGetInfo", code)?;
    Ok(DeviceMemory {
        free_bytes: free as u64,
        total_bytes: total as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(CudaVersion::of(13_000).to_string(), "13.0");
        assert_eq!(CudaVersion::of(12_080).to_string(), "12.8");
        assert!(runtime_version().is_ok_and(|version| version.major >= 12));
    }

    #[test]
    fn a_device_that_kernels_do_not_run_on_is_named() {
        let info = |name: &str, compute_capability, shared_bytes| DeviceInfo {
            name: name.to_owned(),
            compute_capability,
            multiprocessors: 100,
            shared_bytes,
            total_bytes: 1 << 34,
        };
        let text = |checked: Result<(), CudaError>| checked.map_err(|error| error.to_string());
        for whole in [
            info("NVIDIA H200", (9, 0), 232_448),
            info("NVIDIA B200", (10, 0), 232_448),
        ] {
            assert_eq!(whole.check_sampler(), Ok(()));
            assert_eq!(whole.check_models(), Ok(()));
        }
        let consumer = info("NVIDIA GeForce RTX 5090", (12, 0), 101_376);
        assert_eq!(consumer.check_sampler(), Ok(()));
        assert_eq!(
            text(consumer.check_models()),
            Err("NVIDIA GeForce RTX 5090 has 99 KiB of shared memory a block (compute capability 12.0); the models' kernels need 227 KiB".to_owned())
        );
        let ampere = info("NVIDIA A100", (8, 0), 166_912);
        assert_eq!(ampere.check_sampler(), Ok(()));
        assert_eq!(
            text(ampere.check_models()),
            Err(
                "NVIDIA A100 has compute capability 8.0; the models' kernels need 9.0 or later"
                    .to_owned()
            )
        );
        assert_eq!(
            text(info("Tesla T4", (7, 5), 65_536).check_sampler()),
            Err(
                "Tesla T4 has compute capability 7.5; the sampler's kernels need 8.0 or later"
                    .to_owned()
            )
        );
        assert_eq!(
            text(info("a small one", (8, 6), 65_536).check_sampler()),
            Err("a small one has 64 KiB of shared memory a block (compute capability 8.6); the sampler's kernels need 99 KiB".to_owned())
        );
    }

    #[test]
    fn a_build_has_code_for_something() {
        assert!(compiled_archs().all(|arch| arch >= 75) && compiled_archs().count() > 0);
    }
}
