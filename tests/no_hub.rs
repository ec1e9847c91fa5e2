//! A build without the hub says so where an id is given.
#![cfg(not(feature = "hub"))]

use std::path::Path;

#[test]
fn an_id_is_an_error_that_names_the_feature() {
    let error = weft::base::Base::open(Path::new("org/name")).err().expect("there is no hub");
    let sentence = "org/name: there is no such file or folder, and this build has no hub support; pass a folder or build with \
                    --features hub";
    assert_eq!(error.to_string(), sentence);
}
