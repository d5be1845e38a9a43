//! The pages of the repository: every relative link leads to a file that is there.

use std::path::{Path, PathBuf};

#[test]
fn relative_links_resolve() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    find_pages(root, &mut pages);
    assert!(pages.iter().any(|page| page.ends_with("README.md")), "no page was found below {}", root.display());
    let mut broken = Vec::new();
    for page in &pages {
        let text = std::fs::read_to_string(page).expect("a page can be read");
        let folder = page.parent().expect("a page stands in a folder");
        for target in links(&text) {
            if !folder.join(&target).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

/// Markdown files below `folder`, but for what is hidden, built or written by a run.
fn find_pages(folder: &Path, pages: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder can be listed") {
        let path = entry.expect("an entry can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && !["target", "data", "offline", "state"].contains(&name.as_str()) {
            find_pages(&path, pages);
        } else if name.ends_with(".md") {
            pages.push(path);
        }
    }
}

/// Targets of `[text](target)` outside of code blocks, without their `#place`; addresses of the network are left out.
fn links(page: &str) -> Vec<String> {
    let mut code = false;
    let mut found = Vec::new();
    for line in page.lines() {
        code ^= line.trim_start().starts_with("```");
        if code || line.starts_with("    ") {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push(target.to_owned());
            }
        }
    }
    found
}

/// A page that speaks of a metric speaks of one that is there.
#[test]
fn metrics_that_pages_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/operations.md")).expect("the page is there");
    let word = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let named: Vec<&str> = text.split(word).filter(|word| word.starts_with("millstream_")).collect();
    assert!(named.len() > 10, "only {named:?}");
    for name in named {
        assert!(millstream::metrics::catalogue::CATALOGUE.iter().any(|metric| metric.name == name), "`{name}`");
    }
}

/// A page that says which test shows something names one that is there.
#[test]
fn tests_that_pages_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in ["src", "tests", "operators"] {
        read_sources(&root.join(folder), &mut sources);
    }
    for page in ["ARCHITECTURE.md", "docs/reliability.md"] {
        let text = std::fs::read_to_string(root.join(page)).expect("the page is there");
        let is_sentence = |word: &&str| {
            word.matches('_').count() >= 3
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        let named: Vec<&str> = text.split('`').filter(is_sentence).collect();
        assert!(named.len() > 10, "{page} names only {named:?}");
        let missing: Vec<_> = named.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
        assert!(missing.is_empty(), "{page} names tests that are not there: {missing:?}");
    }
}

/// The text of all Rust files below `folder`.
fn read_sources(folder: &Path, to: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder can be listed") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            read_sources(&path, to);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            to.push_str(&std::fs::read_to_string(&path).expect("a source can be read"));
        }
    }
}
