//! Builds ggml, and nothing else of llama.cpp, from the sources that `llama-cpp-sys-2` carries.

use serde_json::Value;
use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package with the sources. Its version is in Cargo.toml.
const CARRIER: &str = "llama-cpp-sys-2";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=CMakeLists.txt");
    let source = carrier()?.join("llama.cpp/ggml");

    let mut config = cmake::Config::new(".");
    // cmake would take -O2 for a build with line tables; Release is what llama.cpp ships.
    config.profile("Release").define("GGML_SRC", &source).build_target("ggml");
    // LLAMAFILE is off by default in ggml and on in llama.cpp. The rest would want libraries or another machine.
    for (option, value) in [
        ("BUILD_SHARED_LIBS", "OFF"),
        ("GGML_NATIVE", "ON"),
        ("GGML_LLAMAFILE", "ON"),
        ("GGML_CPU_REPACK", "ON"),
        ("GGML_OPENMP", "OFF"),
        ("GGML_METAL", "OFF"),
        ("GGML_BLAS", "OFF"),
        ("GGML_ACCELERATE", "OFF"),
        ("GGML_CCACHE", "OFF"),
    ] {
        config.define(option, value);
    }
    let built = config.build().join("build/ggml/src");

    println!("cargo:rustc-link-search=native={}", built.display());
    for library in ["ggml", "ggml-cpu", "ggml-base"] {
        println!("cargo:rustc-link-lib=static={library}");
    }
    let cpp = if env::var("CARGO_CFG_TARGET_VENDOR")? == "apple" { "c++" } else { "stdc++" };
    println!("cargo:rustc-link-lib={cpp}");
    Ok(())
}

/// Where cargo keeps the package with the sources.
fn carrier() -> Result<PathBuf, Box<dyn Error>> {
    let manifest = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
    let out = Command::new(env::var("CARGO")?)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(manifest)
        .output()?;
    if !out.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    let metadata: Value = serde_json::from_slice(&out.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let found = packages.iter().find(|p| p["name"] == CARRIER).and_then(|p| p["manifest_path"].as_str());
    let folder = found.and_then(|path| Path::new(path).parent()).ok_or(format!("cargo metadata lists no {CARRIER}"))?;
    Ok(folder.to_owned())
}
