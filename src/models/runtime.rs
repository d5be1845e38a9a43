//! ONNX Runtime's shared library: where it is looked for, and the one environment of the process.
//!
//! The library is loaded at run time, so that the binary builds and `check` works without it. `deploy/onnxruntime.sh`
//! fetches it into the first folder that is looked into.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;

/// Why ONNX Runtime is not there.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No library in any of the places.
    #[error("ONNX Runtime's shared library is in none of: {}. Run deploy/onnxruntime.sh, or set ORT_DYLIB_PATH to the library's path", list(.looked))]
    Missing {
        /// The places, in the order they were looked into.
        looked: Vec<PathBuf>,
    },
    /// `ORT_DYLIB_PATH` names no file.
    #[error("ORT_DYLIB_PATH is {}, where no file is; unset it, or run deploy/onnxruntime.sh and set it to the path that it prints", .path.display())]
    NotThere {
        /// The variable's value.
        path: PathBuf,
    },
    /// The library does not load.
    #[error("ONNX Runtime's library {} does not load: {reason}. Run deploy/onnxruntime.sh for one that does", .path.display())]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The environment of the process, made at the first call. ONNX Runtime allows one library and one environment for the
/// life of a process; a failed attempt may be repeated.
///
/// # Errors
/// If the library is missing or does not load.
pub fn environment() -> Result<Environment, RuntimeError> {
    static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);
    let mut environment = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*environment {
        return Ok(environment.clone());
    }
    let path = find(&Places::of_process())?;
    let unusable = |reason: String| RuntimeError::Unusable { path: path.clone(), reason };
    let built = ort::init_from(&path).map_err(|e| unusable(e.to_string()))?;
    let built = built.with_name("millstream").with_telemetry(false).build().map_err(|e| unusable(e.to_string()))?;
    built.set_log_level(ort::logging::LogLevel::Fatal);
    *environment = Some(built.clone());
    Ok(built)
}

/// Where to look.
struct Places {
    /// `ORT_DYLIB_PATH`: when it is set, nothing else counts.
    named: Option<PathBuf>,
    /// Folders, in order.
    folders: Vec<PathBuf>,
}

impl Places {
    fn of_process() -> Self {
        let named = env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
        let named_folder = |variable| env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
        let caches = named_folder("XDG_CACHE_HOME").or_else(|| Some(named_folder("HOME")?.join(".cache")));
        let cache = named_folder("MILLSTREAM_CACHE").or_else(|| Some(caches?.join("millstream")));
        let mut folders: Vec<PathBuf> = cache.map(|cache| cache.join("onnxruntime")).into_iter().collect();
        if let Some(beside) = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf)) {
            folders.extend([beside.clone(), beside.join("lib")]);
        }
        let system = [
            "/usr/local/lib",
            "/usr/lib",
            "/usr/lib64",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/opt/homebrew/lib",
        ];
        folders.extend(system.map(PathBuf::from));
        Places { named, folders }
    }
}

fn find(places: &Places) -> Result<PathBuf, RuntimeError> {
    if let Some(path) = &places.named {
        return if path.is_file() { Ok(path.clone()) } else { Err(RuntimeError::NotThere { path: path.clone() }) };
    }
    let found = places.folders.iter().find_map(|folder| newest_library(folder));
    found.ok_or_else(|| RuntimeError::Missing { looked: places.folders.clone() })
}

/// The library in a folder, by its name on this system, with or without a version; of several the last by name.
fn newest_library(folder: &Path) -> Option<PathBuf> {
    let is_library = |name: &str| match env::consts::OS {
        "macos" => name.starts_with("libonnxruntime.") && name.ends_with(".dylib"),
        "windows" => name == "onnxruntime.dll",
        _ => name.starts_with("libonnxruntime.so"),
    };
    let entries = folder.read_dir().ok()?.filter_map(Result::ok);
    let libraries = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_library));
    libraries.map(|entry| entry.path()).filter(|path| path.is_file()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_says_where_it_was_looked_for_and_what_to_run() {
        let folders = vec![PathBuf::from("/nowhere/a"), PathBuf::from("/nowhere/b")];
        let message = find(&Places { named: None, folders }).unwrap_err().to_string();
        for part in ["/nowhere/a, /nowhere/b", "deploy/onnxruntime.sh", "ORT_DYLIB_PATH"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_path_that_is_named_is_the_only_place() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(if cfg!(target_os = "macos") {
            "libonnxruntime.1.dylib"
        } else {
            "libonnxruntime.so.1"
        });
        std::fs::write(&library, b"").unwrap();
        let folders = vec![folder.path().to_path_buf()];
        assert_eq!(find(&Places { named: None, folders: folders.clone() }).unwrap(), library);
        let error = find(&Places { named: Some("/nowhere/lib.so".into()), folders }).unwrap_err();
        assert!(matches!(error, RuntimeError::NotThere { .. }), "{error}");
    }
}
