//! Merging small models that the tests make themselves: no data from elsewhere is needed.

mod docs;
mod files;
mod kit;
mod options;
mod outputs;
mod provenance;
mod tied;
mod worked;
