//! Adapters: attaching, sets of them, and what a session does with a set.

use core::ffi::c_void;

use runtime::{Active, Adapter, Error, ErrorKind, Set};

use crate::model::{CConfig, CModel, CText, Handle, config_of};
use crate::session::CSession;
use crate::status::{CError, CStatus, Checked, checked, exclusive, list, put, reference, run};

/// Bytes of a `lora_adapter`.
const ADAPTER_BYTES: usize = 2048;

/// What a `lora_adapter` holds.
pub struct Attached {
    adapter: Adapter<'static>,
    #[cfg(feature = "std")]
    #[expect(dead_code, reason = "kept for its end: it unmaps the file")]
    mapping: Option<runtime::map::Mapping>,
}

const _: () = assert!(size_of::<Attached>() <= ADAPTER_BYTES && align_of::<Attached>() <= 8);

/// A `lora_adapter` of the header.
#[repr(C, align(8))]
pub struct CAdapter([u8; ADAPTER_BYTES]);

impl CAdapter {
    /// The adapter in it.
    ///
    /// # Safety
    /// Null, or attached and not detached.
    unsafe fn adapter<'a>(this: *const Self) -> Checked<&'a Adapter<'static>> {
        // SAFETY: an attached adapter begins with this.
        Ok(&unsafe { reference(this.cast::<Attached>(), "adapter") }?.adapter)
    }
}

/// `lora_active` of the header.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CActive {
    adapter: *const CAdapter,
    weight: f32,
    from: u32,
}

/// `lora_set` of the header.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CSet {
    active: *const CActive,
    count: usize,
}

impl CSet {
    /// The adapters in it.
    ///
    /// # Safety
    /// As [`set_of`].
    pub unsafe fn set(&self) -> Checked<Set<'static>> {
        // SAFETY: the caller's.
        unsafe { set_of(self.active, self.count) }
    }
}

/// The set of `count` acting adapters.
///
/// # Safety
/// `active`: null or `count` things, whose adapters are null or attached, and stay so while the set is used.
unsafe fn set_of(active: *const CActive, count: usize) -> Checked<Set<'static>> {
    // SAFETY: as documented.
    let given = unsafe { list(active, count, "active") }?;
    let mut all = [None; runtime::adapter::MAX_ACTIVE];
    let many = Error::new(ErrorKind::Capacity, "adapters at once").values(given.len() as u64, all.len() as u64);
    let all = all.get_mut(..given.len()).ok_or(many)?;
    for (to, from) in all.iter_mut().zip(given) {
        // SAFETY: as documented; 'static stands for "as long as the set is used".
        let adapter: &'static Adapter<'static> = unsafe { CAdapter::adapter(from.adapter) }?;
        *to = Some(Active { adapter, weight: from.weight, from: from.from });
    }
    // The same list without the options: every one is there.
    let Some(first) = all.first().copied().flatten() else { return Ok(Set::BASE) };
    let mut active = [first; runtime::adapter::MAX_ACTIVE];
    for (to, from) in active.iter_mut().zip(all.iter().flatten()) {
        *to = *from;
    }
    checked(Set::new(&active[..given.len()]))
}

/// Attaches an adapter in memory.
///
/// # Safety
/// `adapter`: null or writable. `model`: null or open. `bytes`: null or `len` bytes that stay as they are until the adapter is
/// detached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_adapter_attach(
    adapter: *mut CAdapter,
    model: *const CModel,
    bytes: *const c_void,
    len: usize,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented; 'static stands for "as long as the adapter is attached".
        let (model, bytes): (&Handle, &'static [u8]) =
            unsafe { (CModel::handle(model)?, list(bytes.cast(), len, "bytes")?) };
        let attached = Attached {
            adapter: checked(Adapter::attach(&model.model, bytes))?,
            #[cfg(feature = "std")]
            mapping: None,
        };
        // SAFETY: as documented; it fits (asserted above).
        unsafe { put(adapter.cast::<Attached>(), "adapter", attached) }
    })
}

/// Maps a file and attaches it as an adapter.
///
/// # Safety
/// As [`lora_adapter_attach`]; `path`: null or a string that ends with a zero.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_adapter_attach_file(
    adapter: *mut CAdapter,
    model: *const CModel,
    path: *const core::ffi::c_char,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented.
        let (model, (mapping, bytes)) = unsafe { (CModel::handle(model)?, crate::model::map_file(path)?) };
        let attached = Attached { adapter: checked(Adapter::attach(&model.model, bytes))?, mapping: Some(mapping) };
        // SAFETY: as documented; it fits (asserted above).
        unsafe { put(adapter.cast::<Attached>(), "adapter", attached) }
    })
}

/// Detaches an adapter; unmaps its file.
///
/// # Safety
/// `adapter`: null, or attached and not selected by any session that is still used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_adapter_detach(adapter: *mut CAdapter) {
    if !adapter.is_null() {
        // SAFETY: as documented: an attached adapter begins with this, and nobody uses it after this.
        unsafe { adapter.cast::<Attached>().drop_in_place() };
    }
}

/// The name an adapter was packed under.
///
/// # Safety
/// `adapter`: null or attached. `name`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_adapter_name(adapter: *const CAdapter, name: *mut CText, error: *mut CError) -> CStatus {
    run(error, || {
        // SAFETY: as documented.
        unsafe { put(name, "name", CText::new(CAdapter::adapter(adapter)?.name())) }
    })
}

/// From which position of a prompt an adapter acts.
///
/// # Safety
/// `adapter`: null or attached. `tokens`: null or `count` numbers. `from`: null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_adapter_acts_from(
    adapter: *const CAdapter,
    tokens: *const u32,
    count: usize,
    from: *mut u32,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented.
        let (adapter, prompt) = unsafe { (CAdapter::adapter(adapter)?, list(tokens, count, "tokens")?) };
        // SAFETY: as documented.
        unsafe { put(from, "from", adapter.acts_from(prompt).unwrap_or(u32::MAX)) }
    })
}

/// A model as it is while an adapter acts.
///
/// # Safety
/// `seen`: null or writable. `model`: null or open. `adapter`: null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_model_with_adapter(
    seen: *mut CModel,
    model: *const CModel,
    adapter: *const CAdapter,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented.
        let (model, adapter) = unsafe { (CModel::handle(model)?, CAdapter::adapter(adapter)?) };
        // SAFETY: as documented; a handle fits.
        unsafe { put(seen.cast::<Handle>(), "seen", Handle::view(model.model.with_adapter(adapter))) }
    })
}

/// Makes room for one more set of adapters.
///
/// # Safety
/// `config`: null or writable. `active`: as [`set_of`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_config_allow(
    config: *mut CConfig,
    active: *const CActive,
    count: usize,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented.
        let (config, set) = unsafe { (exclusive(config, "config")?, set_of(active, count)?) };
        let mut planned = config_of(config)?;
        planned.adapters = planned.adapters.or(set.needs());
        *config = planned.into();
        Ok(())
    })
}

/// Chooses the adapters of all further requests.
///
/// # Safety
/// `session`: null or open. `active`: as [`set_of`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lora_session_select(
    session: *mut CSession,
    active: *const CActive,
    count: usize,
    error: *mut CError,
) -> CStatus {
    run(error, || {
        // SAFETY: as documented.
        let (session, set) = unsafe { (exclusive(session, "session")?, set_of(active, count)?) };
        let opened = session.opened();
        let model = set.iter().next().map_or(opened, |first| opened.with_adapter(first.adapter));
        let session = session.get();
        checked(session.select(set))?;
        checked(session.set_face(model))
    })
}
