package sim

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	wal "github.com/hashicorp/raft-wal/segment"
)

// flip is a bit that went over.
type flip struct {
	in  *[]byte
	at  int
	bit byte
	now byte
	// must: whoever starts on it must notice.
	must bool
}

// rot flips a bit of what is stored, and reports in what. The newest append is
// spared: after a crash nothing tells it from one that was never finished.
func (d *platter) rot() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		if d.files[name].last > 0 {
			names = append(names, name)
		}
	}
	var f flip
	what, end := "", 0
	switch k := d.rng.IntN(len(names) + len(d.snaps) + 1); {
	case k < len(names):
		what = names[k]
		f.in, end = &d.files[what].data, d.files[what].last
		f.at = d.rng.IntN(end)
		f.must = d.isRead(what, f.at)
	case k < len(names)+len(d.snaps):
		s := d.snaps[k-len(names)]
		what, f.in, end = "snapshot "+s.meta.ID, &s.data, len(s.data)
		f.at = d.rng.IntN(end)
		f.must = s == d.snaps[len(d.snaps)-1]
	default:
		return ""
	}
	if slices.ContainsFunc(d.flipped, func(o flip) bool { return o.in == f.in && o.at == f.at }) {
		return "" // it might go back
	}
	f.bit = 1 << d.rng.IntN(8)
	(*f.in)[f.at] ^= f.bit
	f.now = (*f.in)[f.at]
	d.flipped = append(d.flipped, f)
	return fmt.Sprintf("%s at %d", what, f.at)
}

// isRead reports whether a start reads that byte of a segment: all of the last one
// is checked, and of the others raft reads every entry that is not in the newest
// snapshot. d.mu is held.
func (d *platter) isRead(name string, at int) bool {
	var snapped uint64
	if n := len(d.snaps); n > 0 {
		snapped = d.snaps[n-1].meta.Index
	}
	for i, s := range d.meta.Segments {
		if wal.FileName(s) == name {
			index := entryAt(d.files[name].data, s.BaseIndex, at)
			return i == len(d.meta.Segments)-1 || index > snapped && index <= s.MaxIndex
		}
	}
	return false
}

// entryAt is the index of the entry that a byte of a segment belongs to, 0 if that
// is not part of a record.
func entryAt(data []byte, base uint64, at int) uint64 {
	const fileHeader, frameHeader = 32, 8
	index := base
	for from := fileHeader; from+frameHeader <= len(data); {
		n := int(binary.LittleEndian.Uint32(data[from+4:]))
		switch body := from + frameHeader; data[from] {
		case byte(wal.FrameEntry):
			if body <= at && at < body+n {
				return index
			}
			index++
		case byte(wal.FrameIndex):
		case byte(wal.FrameCommit):
			n = 0 // it is a checksum
		default:
			return 0
		}
		from += frameHeader + (n+frameHeader-1)/frameHeader*frameHeader
	}
	return 0
}

// inspect looks at the disk when a start has opened the log, and nothing has been
// appended yet: rot that it must have noticed may have been written over, and what
// counts from here on must be durable.
func (d *platter) inspect() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wrong = ""
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		for _, e := range slices.Concat(f.dirty, f.lost) {
			if !slices.Equal(f.data[e.at:e.at+len(e.was)], e.was) {
				d.wrong = "on an append that no sync has made durable"
			}
		}
	}
	if d.mustNoticeLocked() {
		d.wrong = "on a disk that had rotted"
	}
}

// mustNotice reports whether a start now must notice rot.
func (d *platter) mustNotice() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mustNoticeLocked()
}

func (d *platter) mustNoticeLocked() bool {
	return slices.ContainsFunc(d.flipped, func(f flip) bool { return f.must })
}

// overlooked is what a start must have noticed, "" if nothing.
func (d *platter) overlooked() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wrong
}

// restore brings back what rotted, as from a mirror, and reports whether anything
// had when the present start read it.
func (d *platter) restore() (was bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.flipped {
		if (*f.in)[f.at] == f.now {
			(*f.in)[f.at] ^= f.bit
		}
	}
	d.flipped = nil
	return d.rotten
}
