//! Any bytes where gateway and indexer talk: requests, placements, replies and the pages in them.

#![no_main]

use affinity::fleet::{Endpoint, Fleet, Health, Reported};
use affinity::page::{PageEntry, PageView, PageWriter, encode_page};
use affinity::predicted::decode_mark;
use affinity::profile::{Profile, Profiles};
use affinity::rows::merge;
use affinity::sync::{
    End, Frame, Load, Placement, Request, Versions, decode_placements, encode_placements, read_frames, write_frame,
};
use affinity::{Fingerprint, Slot, Stride, Tier, Tokens};
use libfuzzer_sys::fuzz_target;
use warmpath_fuzz::{within, write_seeds};

fuzz_target!(
    init: write_seeds(seeds()),
    |body: &[u8]| {
        // What is read is owned: an address of 2 bytes may become a string of 24.
        within(4096 + 100 * body.len(), || {
            read(body);
            for frame in read_frames(body) {
                match frame {
                    Frame::Page(_, bytes)
                    | Frame::Rows(_, bytes)
                    | Frame::Fleet(bytes)
                    | Frame::Profiles(bytes)
                    | Frame::Placements(bytes) => read(bytes),
                    Frame::End(_) => {}
                }
            }
        });
        // Sets may lie over one another in a page, but not when they are written anew: then there is room for so many.
        within(4096 + 500_000 + 100 * body.len(), || lay(body));
    }
);

/// Reads bytes as everything that there is. What can be read must be written and read again as the same.
fn read(bytes: &[u8]) {
    same(Request::decode(bytes), Request::encode, Request::decode);
    same(Fleet::decode(bytes), Fleet::encode, Fleet::decode);
    same(Profiles::decode(bytes), Profiles::encode, Profiles::decode);
    same(decode_placements(bytes), |(gateway, all)| encode_placements(*gateway, all), decode_placements);
    let _ = decode_mark(bytes);
    if let Some(page) = PageView::parse(bytes) {
        assert!(page.len() * 8 <= bytes.len());
        for key in 0..64 {
            let at = usize::try_from(key * 8).unwrap_or(0);
            let key = bytes
                .get(at..at + 4)
                .and_then(|key| key.try_into().ok())
                .map_or(key, |key| u64::from(u32::from_le_bytes(key)));
            if let Some(found) = page.get(Fingerprint(key)) {
                assert!(found.holders().count() <= usize::from(u16::MAX) + 1);
            }
        }
    }
}

/// Lays any rows over any page.
fn lay(body: &[u8]) {
    let mut pages = Vec::new();
    for frame in read_frames(body).take(32) {
        match frame {
            Frame::Page(_, bytes) => pages.extend(PageView::parse(bytes)),
            Frame::Rows(_, rows) => {
                for page in &pages {
                    let Some(merged) = merge(page, rows, 9) else { continue };
                    let merged = PageView::parse(&merged).expect("what was merged is a page");
                    assert_eq!((merged.epoch, merged.as_of), (page.epoch, 9));
                    assert!(merged.len() <= page.len() + rows.len() / 8);
                }
            }
            _ => {}
        }
    }
}

fn same<T>(value: Option<T>, encode: impl Fn(&T) -> Vec<u8>, decode: impl Fn(&[u8]) -> Option<T>) {
    if let Some(value) = value {
        let bytes = encode(&value);
        let again = decode(&bytes).expect("what was written can be read");
        assert_eq!(encode(&again), bytes);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let have = Versions { epoch: 7, table: 5, pages: 6, fleet: 3, profiles: 2, placements: 1 };
    let load = Load { slot: Slot(1), in_flight: 2, queued_tokens: 300 };
    let request = Request { gateway: 9, have, wait_ms: 500, loads: vec![load, load] };
    let endpoint = Endpoint {
        slot: Slot(1),
        address: "10.0.0.1:8000".into(),
        rank: Some(1),
        health: Health::Draining,
        events: true,
        models: vec![0],
        prefill_rate: 9000.0,
        reported: Some(Reported { running: 1, waiting: 2, kv_usage: 0.5 }),
        remote_in_flight: 3,
        remote_queued_tokens: 400,
    };
    let fleet = Fleet {
        epoch: 7,
        table_bits: 3,
        stride: Stride::default(),
        gateways: 2,
        endpoints: vec![Endpoint { rank: None, ..endpoint.clone() }, endpoint],
    };
    let profile = Profile { name: "tiny".into(), aliases: vec!["small".into()], ..Profile::default() };
    let profiles = Profiles { models: vec![profile.clone(), profile] };
    let marks = (1..5).map(|n| (Fingerprint(n << 40), Tokens(n as u32 * 16))).collect();
    let placements = encode_placements(9, &[Placement { slot: Slot(1), marks }]);
    let entry = |n: u64, holders: &[Slot]| PageEntry {
        fingerprint: Fingerprint(n),
        tokens: Tokens(64),
        holders: holders.iter().map(|slot| (*slot, Tier::Gpu)).collect(),
    };
    let page = encode_page(7, 4, &[entry(1, &[Slot(0)]), entry(2, &[Slot(0), Slot(1)])]);
    let (fleet, profiles) = (fleet.encode(), profiles.encode());
    let mut rows = PageWriter::of_rows(3);
    rows.gone(1);
    rows.many(2, &[(Slot(1), Tier::Gpu), (Slot(2), Tier::Cpu)], 3);
    rows.one(3, 1, 4);
    let rows = rows.finish();
    let mut reply = Vec::new();
    for frame in [
        Frame::Page(2, &page),
        Frame::Rows(2, &rows),
        Frame::Fleet(&fleet),
        Frame::Profiles(&profiles),
        Frame::Placements(&placements),
        Frame::End(End { have, more: true }),
    ] {
        write_frame(&mut reply, &frame);
    }
    vec![request.encode(), fleet, profiles, placements, page, reply]
}
