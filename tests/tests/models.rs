//! `docs/models.md` says what the ledger says.

#[test]
fn the_page_of_models_is_up_to_date() {
    if let Some((path, page)) = conformance::models::expected().expect("ledger and cases can be read") {
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == page, "docs/models.md is not what the ledger says: BLESS=1 (tests/README.md) writes both");
    }
}
