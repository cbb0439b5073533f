//! The only place that touches Envoy.
//!
//! The SDK's wrappers panic on every status they do not list, and a panic takes the worker's whole VM down with every
//! stream on it. So the calls are imported here raw, and a status that is not success is simply `None` or `false`.
//! One call stays with the SDK: HTTP callouts, whose tokens its dispatcher must know.

#![expect(unsafe_code, reason = "host calls are foreign functions; this module is their only user")]

use std::time::Duration;

const OK: u32 = 0;

/// Which buffer to read.
#[derive(Clone, Copy)]
pub enum Buffer {
    RequestBody = 0,
    CalloutBody = 4,
    PluginConfiguration = 7,
}

/// Which headers to read or change.
#[derive(Clone, Copy)]
pub enum Headers {
    Request = 0,
    Response = 2,
    /// Of a callout's answer; only there when it has any.
    Callout = 6,
}

/// A counter or gauge of Envoy's: process-wide, seen and changed by every worker.
#[derive(Clone, Copy, Debug)]
pub struct Metric(u32);

#[derive(Clone, Copy)]
pub enum MetricKind {
    Counter = 0,
    Gauge = 1,
}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(kind: u32, start: usize, max: usize, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(map: u32, key: *const u8, key_size: usize, v: *const u8, v_size: usize) -> u32;
    fn proxy_remove_header_map_value(map: u32, key: *const u8, key_size: usize) -> u32;
    fn proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_property(path: *const u8, path_size: usize, value: *const u8, value_size: usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(key: *const u8, key_size: usize, value: *const u8, value_size: usize, cas: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
    fn proxy_set_effective_context(id: u32) -> u32;
    fn proxy_continue_stream(stream: u32) -> u32;
}

/// Takes over what the host allocated in this module's memory through `proxy_on_memory_allocate`.
fn own(status: u32, data: *mut u8, size: usize) -> Option<Vec<u8>> {
    if status != OK {
        return None;
    }
    if data.is_null() {
        return Some(Vec::new());
    }
    // SAFETY: the host got this block from the SDK's allocator function, which makes it with exactly this capacity.
    Some(unsafe { Vec::from_raw_parts(data, size, size) })
}

/// Wall-clock time in milliseconds; 0 if the host will not say.
pub fn now_ms() -> u64 {
    let mut time = 0;
    // SAFETY: the host writes one u64.
    let status = unsafe { proxy_get_current_time_nanoseconds(&raw mut time) };
    if status == OK { time / 1_000_000 } else { 0 }
}

/// Asks for `on_tick` at this interval.
pub fn tick_every(period: Duration) {
    // SAFETY: no memory is passed.
    unsafe { proxy_set_tick_period_milliseconds(period.as_millis() as u32) };
}

/// Reads a buffer from `start`, at most `max` bytes.
pub fn buffer(kind: Buffer, start: usize, max: usize) -> Option<Vec<u8>> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the host writes a pointer and a size.
    let status = unsafe { proxy_get_buffer_bytes(kind as u32, start, max, &raw mut data, &raw mut size) };
    own(status, data, size)
}

/// A header's value.
pub fn header(map: Headers, name: &str) -> Option<String> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the host reads `name` and writes a pointer and a size.
    let status =
        unsafe { proxy_get_header_map_value(map as u32, name.as_ptr(), name.len(), &raw mut data, &raw mut size) };
    own(status, data, size).and_then(|v| String::from_utf8(v).ok())
}

/// Sets a header; false if it can no longer be set.
pub fn set_header(map: Headers, name: &str, value: &str) -> bool {
    // SAFETY: the host reads both strings.
    unsafe { proxy_replace_header_map_value(map as u32, name.as_ptr(), name.len(), value.as_ptr(), value.len()) == OK }
}

/// Removes a header, if it is there.
pub fn remove_header(map: Headers, name: &str) {
    // SAFETY: the host reads the name.
    unsafe { proxy_remove_header_map_value(map as u32, name.as_ptr(), name.len()) };
}

/// A property of the stream; `path` has its parts joined by NUL.
pub fn property(path: &str) -> Option<Vec<u8>> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the host reads the path and writes a pointer and a size.
    let status = unsafe { proxy_get_property(path.as_ptr(), path.len(), &raw mut data, &raw mut size) };
    own(status, data, size)
}

/// Leaves a value in the stream's filter state under `wasm.<name>`.
pub fn set_filter_state(name: &str, value: &str) -> bool {
    // SAFETY: the host reads both strings.
    unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) == OK }
}

/// A value of shared data and its compare-and-swap number.
pub fn shared(key: &str) -> Option<(Vec<u8>, u32)> {
    let (mut data, mut size, mut cas) = (std::ptr::null_mut(), 0, 0);
    // SAFETY: the host reads the key and writes a pointer, a size and a number.
    let status = unsafe { proxy_get_shared_data(key.as_ptr(), key.len(), &raw mut data, &raw mut size, &raw mut cas) };
    own(status, data, size).map(|v| (v, cas))
}

/// A value of shared data that is not going to be swapped.
pub fn read_shared(key: &str) -> Option<Vec<u8>> {
    shared(key).map(|(value, _)| value)
}

/// As `cas`: writes only a key that is missing. Numbers go up from 1, so that no value has this one for years of writing.
pub const ABSENT: u32 = u32::MAX;

/// Writes shared data. With `cas` only if nobody wrote since; but a key that is missing is always written.
pub fn set_shared(key: &str, value: &[u8], cas: Option<u32>) -> bool {
    // SAFETY: the host reads both.
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas.unwrap_or(0)) == OK }
}

/// Defines a metric, or finds the one already there under this name.
pub fn metric(kind: MetricKind, name: &str) -> Option<Metric> {
    let mut id = 0;
    // SAFETY: the host reads the name and writes a number.
    let status = unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id) };
    (status == OK).then_some(Metric(id))
}

impl Metric {
    /// Adds, atomically. Counters take only what is above 0.
    pub fn add(self, offset: i64) {
        // SAFETY: no memory is passed.
        unsafe { proxy_increment_metric(self.0, offset) };
    }

    /// Sets a gauge.
    pub fn set(self, value: u64) {
        // SAFETY: no memory is passed.
        unsafe { proxy_record_metric(self.0, value) };
    }

    /// The value. Gauges wrap below zero; here such a value reads as 0.
    pub fn get(self) -> u64 {
        let mut value = 0;
        // SAFETY: the host writes one u64.
        let status = unsafe { proxy_get_metric(self.0, &raw mut value) };
        if status == OK && value < 1 << 63 { value } else { 0 }
    }
}

/// Lets go of a request that was paused, from outside its own callbacks. `here` is the calling context.
pub fn resume_request(stream: u32, here: u32) -> bool {
    const REQUEST: u32 = 0;
    // SAFETY: no memory is passed.
    unsafe {
        let resumed = proxy_set_effective_context(stream) == OK && proxy_continue_stream(REQUEST) == OK;
        proxy_set_effective_context(here);
        resumed
    }
}

/// Starts an HTTP callout: `on_http_call_response` of the calling context gets the answer. `None` when there is no such
/// cluster (yet).
pub fn post(cluster: &str, path: &str, body: &[u8], timeout: Duration) -> Option<u32> {
    let headers = vec![
        (":method", "POST"),
        (":path", path),
        (":authority", cluster),
        ("content-type", "application/octet-stream"),
    ];
    proxy_wasm::hostcalls::dispatch_http_call(cluster, headers, Some(body), Vec::new(), timeout).ok()
}
