//! Finds and loads ONNX Runtime, once in a process.

use ort::AsPointer;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use skiff_contract::Provider;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Environment variable with the path of the library.
pub const LIBRARY_VARIABLE: &str = "SKIFF_ONNXRUNTIME";
/// Environment variable that keeps ONNX Runtime from sending reports.
const SILENCE_VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
const LIBRARY_NAME: &str = "libonnxruntime.so";

/// ONNX Runtime with its one thread pool. Clones share it.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: Environment,
    version: String,
    pub(crate) threads: usize,
    pub(crate) provider: Provider,
    pub(crate) traces: Option<PathBuf>,
}

/// Reason why ONNX Runtime is not available.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The library was not found.
    #[error(
        "ONNX Runtime was not found ({tried}); set {LIBRARY_VARIABLE} to the path of {LIBRARY_NAME}, or run `cross/fetch` in the source tree"
    )]
    NotFound {
        /// The searched places.
        tried: String,
    },
    /// The library was found but cannot be loaded.
    #[error("loading ONNX Runtime from {path}; is it a library for this machine, version 1.17 or later?", path = path.display())]
    Load {
        /// Path of the library.
        path: PathBuf,
        /// The cause.
        source: ort::LoadDynamicError,
    },
    /// The library was loaded but cannot be started.
    #[error("starting ONNX Runtime")]
    Start(#[source] ort::Error),
    /// The library was built without the requested provider.
    #[error(
        "ONNX Runtime {library} has no {provider}, only {there}; choose one of these, or name a library that has it in {LIBRARY_VARIABLE}"
    )]
    NoProvider {
        /// The missing provider.
        provider: Provider,
        /// Version and path of the library.
        library: String,
        /// The providers of the library.
        there: String,
    },
    /// The provider cannot be started.
    #[error("starting {provider}; are its driver and its libraries installed?")]
    Provider {
        /// The provider.
        provider: Provider,
        /// The cause.
        source: ort::Error,
    },
}

static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Loads the library at `library`, or from the usual places, with a pool of `threads` threads that do not spin.
    /// A process has one runtime: later calls return the first.
    ///
    /// # Errors
    /// A library that is missing or does not load.
    pub fn load(library: Option<&Path>, threads: usize) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            return Ok(runtime.clone());
        }
        let path = find(library)?;
        keep_silent();
        let builder = ort::init_from(&path).map_err(|source| RuntimeError::Load { path: path.clone(), source })?;
        let environment = start(builder, threads).map_err(RuntimeError::Start)?;
        let runtime =
            Self { environment, version: version(&path), threads, provider: Provider::default(), traces: None };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// Returns this runtime with profiling: when a session closes, it writes the times of its operators into `folder`, as a file
    /// of trace events in JSON.
    #[must_use]
    pub fn tracing_into(self, folder: PathBuf) -> Self {
        Self { traces: Some(folder), ..self }
    }

    /// Returns the library's version and path.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns true if the runtime computes with our fused operators, which run only on the processor.
    #[must_use]
    pub fn fuses(&self) -> bool {
        self.provider == Provider::Cpu
    }

    /// Returns the environment for sessions.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// Keeps the library from sending usage reports to Microsoft. Version 1.32 reports some seconds after loading, even if the
/// environment was made without telemetry (docs/decisions/2026-11-26-silent-runtime.md).
fn keep_silent() {
    #[expect(
        unsafe_code,
        reason = "the only variable that this process sets; the list that glibc replaces by the first one set is never \
                  freed, so whoever reads the old one meanwhile finds it"
    )]
    unsafe {
        std::env::set_var(SILENCE_VARIABLE, "1");
    }
}

fn start(builder: ort::environment::EnvironmentBuilder, threads: usize) -> ort::Result<Environment> {
    let pool = GlobalThreadPoolOptions::default();
    let pool = pool.with_intra_threads(threads)?.with_inter_threads(1)?.with_spin_control(false)?;
    let environment = builder.with_name("skiff").with_telemetry(false).with_global_thread_pool(pool).build()?;
    register_arena(&environment)?;
    Ok(environment)
}

/// Registers one arena for all sessions, which grows by regions of doubling size. Tensors of changing length are cut from
/// the regions, and freed neighbours merge again.
///
/// The alternatives need more memory. Regions of exactly the requested size cannot merge and took four times as much. One arena
/// for each session also takes several times as much. The C library's allocator fragments, and its memory grew by a megabyte in
/// each step.
fn register_arena(environment: &Environment) -> ort::Result<()> {
    const NO_LIMIT: usize = 0;
    const NEXT_POWER_OF_TWO: i32 = 0;
    const DEFAULT: i32 = -1;
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    let mut configuration = std::ptr::null_mut();
    #[expect(
        unsafe_code,
        reason = "`ort` has no safe interface for shared allocators; all three pointers are live, and the configuration is copied"
    )]
    unsafe {
        let api = ort::api();
        let created = (api.CreateArenaCfg)(NO_LIMIT, NEXT_POWER_OF_TWO, DEFAULT, DEFAULT, &raw mut configuration);
        ort::Error::result_from_status(created)?;
        let registered = (api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory.ptr(), configuration);
        (api.ReleaseArenaCfg)(configuration);
        ort::Error::result_from_status(registered)
    }
}

/// Returns the library's own version, which the build information from `ort` does not contain.
fn version(path: &Path) -> String {
    #[repr(C)]
    struct ApiBase {
        api: extern "C" fn(u32) -> *const c_void,
        version: extern "C" fn() -> *const c_char,
    }
    #[expect(unsafe_code, reason = "OrtGetApiBase has had this signature, and its result these two fields, since 1.0")]
    let version = unsafe {
        let library = libloading::Library::new(path);
        library.ok().and_then(|library| {
            let base: libloading::Symbol<'_, extern "C" fn() -> *const ApiBase> =
                library.get(b"OrtGetApiBase\0").ok()?;
            let version = CStr::from_ptr(((*base()).version)());
            version.to_str().ok().map(str::to_owned)
        })
    };
    format!("{} ({})", version.as_deref().unwrap_or("of unknown version"), path.display())
}

/// Searches in this order: the given path, the environment variable, beside the executable, a source tree's cache above the
/// executable, the system's library folders.
fn find(asked: Option<&Path>) -> Result<PathBuf, RuntimeError> {
    let named = asked.map(Path::to_owned).or_else(|| std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from));
    let candidates: Vec<PathBuf> = match named {
        Some(path) => vec![path],
        None => usual_places(),
    };
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => {
            let tried = candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
            Err(RuntimeError::NotFound { tried })
        }
    }
}

fn usual_places() -> Vec<PathBuf> {
    let executable = std::env::current_exe().and_then(std::fs::canonicalize).unwrap_or_default();
    let beside = executable
        .parent()
        .into_iter()
        .flat_map(|folder| [folder.join(LIBRARY_NAME), folder.join("../lib/skiff").join(LIBRARY_NAME)]);
    let cached =
        executable.ancestors().skip(2).take(3).map(|folder| folder.join(".cache/onnxruntime").join(LIBRARY_NAME));
    let triplet = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let system = ["/usr/local/lib", "/usr/lib", triplet.as_str()].map(|folder| Path::new(folder).join(LIBRARY_NAME));
    beside.chain(cached).chain(system).collect()
}
