//! Drift detectors: values in, signals out. One kind a detector.

use crate::kinds;

pub mod adwin;
pub mod page_hinkley;
pub mod psi;

kinds! {
    /// How drift is detected.
    pub enum DetectorKind("detector") {
        "adwin" => Adwin(adwin::AdwinConfig),
        "page_hinkley" => PageHinkley(page_hinkley::PageHinkleyConfig),
        "psi" => Psi(psi::PsiConfig),
    }
}
