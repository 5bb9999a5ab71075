package cluster

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// WALDisk keeps raft's log in segment files, one sync an append, and its vote in
// a small bbolt file beside them. Every write is synced before it is answered.
//
// The library takes what it finds: it checks no record when it reads one, and at
// the first byte of a segment that makes no sense it takes the log to end there.
// So this wrapper adds a checksum to each record, and checks the segments before
// the library sees them (checkWAL).
type WALDisk struct {
	// Files holds the segments. It is the seam for faults of single writes and syncs.
	// The first Sync of a file makes its name durable too. nil: the operating
	// system's.
	Files types.VFS
	// Beside holds the rest; nil: the operating system's.
	Beside       Beside
	SegmentBytes int // of a segment; 0: walSegmentBytes
}

const (
	walDir = "wal"
	// walSegmentBytes is a segment's size. Old entries are given back to the disk
	// a segment at a time, and the last one is read whole at the start.
	walSegmentBytes = 32 << 20
	// walCodecID names our record format in the segments; append-only.
	walCodecID = 0x6261_746f_6e01
	walSumSize = 8
)

// walMarkKey holds, in the stable store, an index that the log reached at least.
var walMarkKey = []byte("baton-log-reached")

// Open implements Disk. Damage is an error that names the directory, never a
// panic and never a shorter log: but a last append that was cut by a crash, and
// so never answered, is taken back.
func (d WALDisk) Open(dir string) (logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore, closer io.Closer, err error) {
	path := filepath.Join(dir, walDir)
	// The library would wait for ever on a lock that it holds itself: what was
	// opened is closed on every error.
	files, beside := d.Files, d.Beside
	if files == nil {
		files = fs.New()
	}
	if beside == nil {
		beside = osBeside{}
	}
	deferred := &deferredFiles{VFS: files}
	meta := &walMeta{beside.Meta(), deferred}
	var w *wal.WAL
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damagedLog(path, p)
		}
		if err != nil {
			logs, stable, snaps, closer = nil, nil, nil, nil
			if w != nil {
				_ = w.Close()
			}
			_ = meta.Close()
		}
	}()
	if err := beside.Prepare(path); err != nil {
		return nil, nil, nil, nil, err
	}
	end, err := checkWAL(path, files, meta)
	if err != nil {
		return nil, nil, nil, nil, damagedLog(path, err)
	}
	w, err = wal.Open(path, wal.WithLogger(hclog.NewNullLogger()), wal.WithMetaStore(meta),
		wal.WithSegmentFiler(walFiler{segment.NewFiler(path, deferred)}), wal.WithCodec(walCodec{}), wal.WithSegmentSize(cmp.Or(d.SegmentBytes, walSegmentBytes)))
	if err != nil {
		return nil, nil, nil, nil, damagedLog(path, err)
	}
	l := &walLog{WAL: w, files: deferred}
	if err := l.check(end); err != nil {
		return nil, nil, nil, nil, damagedLog(path, err)
	}
	if snaps, err = beside.Snapshots(dir); err != nil {
		return nil, nil, nil, nil, err
	}
	return l, w, snaps, l, nil
}

// walLog is the library's log, with what it leaves out.
type walLog struct {
	*wal.WAL
	files *deferredFiles
	mu    sync.Mutex
	mark  uint64 // as on disk: the log reaches at least this index
	once  sync.Once
	err   error // of Close
}

var _ raft.MonotonicLogStore = (*walLog)(nil)

// check compares the log with what the scan found in its last segment (end, 0 for
// nothing) and with the mark, and reads both ends.
func (l *walLog) check(end uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	raw, err := l.Get(walMarkKey)
	if err != nil {
		return err
	}
	if len(raw) != 0 && len(raw) != 8 {
		return errors.New("its metadata are damaged")
	}
	if len(raw) == 8 {
		l.mark = binary.BigEndian.Uint64(raw)
	}
	switch {
	case last < l.mark:
		return fmt.Errorf("it ends at entry %d, but had reached %d", last, l.mark)
	case end != 0 && end != last:
		return fmt.Errorf("it ends at entry %d, but its last segment at %d", last, end)
	}
	for _, index := range []uint64{first, last} {
		if index == 0 {
			continue
		}
		if err := l.GetLog(index, new(raft.Log)); err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
	}
	return nil
}

// GetLog checks that the entry is the one that was asked for: its checksum says
// only that it is whole.
func (l *walLog) GetLog(index uint64, out *raft.Log) error {
	if err := l.WAL.GetLog(index, out); err != nil {
		return err
	}
	if out.Index != index {
		return fmt.Errorf("where entry %d should be is entry %d", index, out.Index)
	}
	return nil
}

// DeleteRange lowers the mark before it takes entries off the end.
func (l *walLog) DeleteRange(lo, hi uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if hi >= l.mark && l.mark > 0 {
		if err := l.setMark(0); err != nil {
			return err
		}
	}
	return l.WAL.DeleteRange(lo, hi)
}

func (l *walLog) setMark(index uint64) error {
	if err := l.Set(walMarkKey, binary.BigEndian.AppendUint64(nil, index)); err != nil {
		return err
	}
	l.mark = index
	return nil
}

// Close notes how far the log reaches: after a clean stop even its last append
// cannot vanish unnoticed.
func (l *walLog) Close() error {
	l.once.Do(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		last, err := l.LastIndex()
		if serr := l.files.sync(); err == nil {
			err = serr
		}
		if err == nil && last != l.mark {
			err = l.setMark(last)
		}
		l.err = errors.Join(err, l.WAL.Close())
	})
	return l.err
}

// walCodec is the library's record with an xxHash64 of it behind.
type walCodec struct{ wal.BinaryCodec }

func (walCodec) ID() uint64 { return walCodecID }

func (c walCodec) Encode(l *raft.Log, w io.Writer) error {
	if b, ok := w.(*bytes.Buffer); ok {
		b.Grow(len(l.Data) + len(l.Extensions) + 64) // what the record takes besides
	}
	sum := xxhash.New()
	if err := c.BinaryCodec.Encode(l, io.MultiWriter(w, sum)); err != nil {
		return err
	}
	_, err := w.Write(binary.BigEndian.AppendUint64(nil, sum.Sum64()))
	return err
}

func (c walCodec) Decode(raw []byte, l *raft.Log) error {
	if len(raw) < walSumSize {
		return wal.ErrCorrupt
	}
	body, sum := raw[:len(raw)-walSumSize], raw[len(raw)-walSumSize:]
	if xxhash.Sum64(body) != binary.BigEndian.Uint64(sum) {
		return fmt.Errorf("%w: the checksum of a record is wrong", wal.ErrCorrupt)
	}
	return c.BinaryCodec.Decode(body, l)
}

// walMeta and walFiler give new segments our codec's number. The library gives
// its own, whatever codec it was told to use, and then opens none of them again.
type walMeta struct {
	types.MetaStore
	files *deferredFiles
}

// CommitState also makes a segment full, the last append of which is synced before.
func (m *walMeta) CommitState(s types.PersistentState) error {
	if err := m.files.sync(); err != nil {
		return err
	}
	for i := range s.Segments {
		s.Segments[i].Codec = walCodecID
	}
	return m.MetaStore.CommitState(s)
}

type walFiler struct{ *segment.Filer }

func (f walFiler) Create(info types.SegmentInfo) (types.SegmentWriter, error) {
	info.Codec = walCodecID
	return f.Filer.Create(info)
}
