package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"time"

	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// A segment file begins with a header of 32 bytes. Frames follow, each at a
// multiple of eight: one byte of type, three of zero, four of length (of a
// commit: CRC-32C) in little-endian order, then the payload. An append is some entries
// and a commit, whose CRC is over all since the commit before, in the first
// append over the header too. The index of a full segment stands before its last
// commit. What was never written is zero.
const (
	walHeaderBytes      = 32
	walFrameHeaderBytes = 8
	walFrameEntry       = byte(segment.FrameEntry)
	walFrameIndex       = byte(segment.FrameIndex)
	walFrameCommit      = byte(segment.FrameCommit)
)

var walCRC = crc32.MakeTable(crc32.Castagnoli)

// checkWAL finds damage that the library would not, or would take for the log's
// end, and mends what a crash may leave. It returns the index that the last
// segment ends at, 0 if that has no entry.
func checkWAL(path string, files types.VFS, meta types.MetaStore) (end uint64, err error) {
	state, err := meta.Load(path)
	if err != nil {
		return 0, err
	}
	for i, s := range state.Segments {
		last := i == len(state.Segments)-1
		switch {
		case s.ID >= state.NextSegmentID, last != s.SealTime.IsZero():
			return 0, errors.New("its metadata are damaged")
		case !last && s.MaxIndex+1 != state.Segments[i+1].BaseIndex:
			return 0, fmt.Errorf("its segments leave a gap after entry %d", s.MaxIndex)
		case !last:
			err = checkSealed(path, files, s)
		default:
			end, err = checkTail(path, files, meta, state)
		}
		if err != nil {
			return 0, err
		}
	}
	return end, nil
}

// checkSealed looks at the length only: each record is checked when it is read.
func checkSealed(path string, files types.VFS, s types.SegmentInfo) error {
	name := segment.FileName(s)
	f, err := files.OpenReader(path, name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	need := s.IndexStart + 4*(s.MaxIndex-s.BaseIndex+1)
	if _, err := f.ReadAt(make([]byte, 1), int64(need)-1); errors.Is(err, io.EOF) {
		return fmt.Errorf("segment %s has fewer than %d bytes: it was cut short", name, need)
	} else if err != nil {
		return err
	}
	return nil
}

// checkTail reads the segment that is being written. Four things may be left by
// a crash or a full disk and are mended: no file yet, one that was not given its whole
// size yet, an append that was cut, and a full segment that the metadata do not know to
// be full.
func checkTail(path string, files types.VFS, meta types.MetaStore, state types.PersistentState) (end uint64, err error) {
	s := state.Segments[len(state.Segments)-1]
	name := segment.FileName(s)
	data, err := readSegment(files, path, name, int(s.SizeLimit))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil // made in the metadata first
	}
	if err != nil {
		return 0, err
	}
	if uint64(len(data)) < uint64(s.SizeLimit) {
		if len(bytes.TrimRight(data, "\x00")) == 0 {
			// Nothing is written before the file has its size. The library makes a
			// segment that is not there whole, and would go on in this one.
			return 0, files.Delete(path, name)
		}
		return 0, fmt.Errorf("segment %s has %d bytes, not %d: it was cut short", name, len(data), s.SizeLimit)
	}
	tail := scanSegment(data)
	if tail.damage != 0 {
		return 0, fmt.Errorf("segment %s is damaged after byte %d: whole entries follow at byte %d", name, tail.end, tail.damage)
	}
	if rest := len(bytes.TrimRight(data[tail.end:], "\x00")); rest > 0 {
		// Stale bytes behind the end must not be taken for entries at the next start.
		if err := writeDurably(files, path, name, int64(tail.end), make([]byte, rest)); err != nil {
			return 0, err
		}
	}
	if tail.entries == 0 {
		return 0, nil
	}
	// The newest append may never have been synced: its process was killed before, or
	// the system forgot it over an error. From here on it counts.
	if err := writeDurably(files, path, name, int64(tail.last), data[tail.last:tail.end]); err != nil {
		return 0, err
	}
	end = s.BaseIndex + uint64(tail.entries) - 1
	if tail.index == 0 {
		return end, nil
	}
	// The library would refuse every append to a full segment for ever.
	return end, meta.CommitState(rotated(state, end, tail.index))
}

// rotated is the state with its last segment sealed at end, and a new one.
func rotated(state types.PersistentState, end, index uint64) types.PersistentState {
	full := &state.Segments[len(state.Segments)-1]
	full.SealTime, full.MaxIndex, full.IndexStart = time.Now(), end, index
	state.Segments = append(state.Segments, types.SegmentInfo{
		ID: state.NextSegmentID, BaseIndex: end + 1, MinIndex: end + 1,
		SizeLimit: full.SizeLimit, Codec: full.Codec, CreateTime: time.Now(),
	})
	state.NextSegmentID++
	return state
}

// writeDurably writes and syncs.
func writeDurably(files types.VFS, path, name string, at int64, b []byte) error {
	f, err := files.OpenWriter(path, name)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Sync(), f.Close())
}

// readSegment reads a whole file, of about size bytes.
func readSegment(files types.VFS, path, name string, size int) ([]byte, error) {
	f, err := files.OpenReader(path, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	buf := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	_, err = buf.ReadFrom(io.NewSectionReader(f, 0, math.MaxInt64))
	return buf.Bytes(), err
}

// segmentTail is what a scan of a segment found.
type segmentTail struct {
	last    int    // where the last whole append begins
	end     int    // behind it; 0: there is none
	entries int    // up to there
	index   uint64 // where the index begins; 0: the segment is not full
	damage  int    // where a whole append begins behind what makes no sense; 0: none
}

// scanSegment reads appends from the beginning. Behind the last whole one there
// is nothing, or the one append that a crash cut: the next begins only when it is
// synced. A whole append behind is the proof that something synced was damaged.
func scanSegment(data []byte) segmentTail {
	var t segmentTail
	from := walHeaderBytes
	for {
		a, ok := scanAppend(data, t.end, from)
		if !ok {
			break
		}
		t.last, t.end, t.entries = t.end, a.end, t.entries+a.entries
		t.index = max(t.index, a.index)
		from = t.end
	}
	rest := t.end + len(bytes.TrimRight(data[t.end:], "\x00"))
	// What makes no sense ends at its commit, or where reading it comes to what no
	// longer looks like one.
	for at := t.end; at+walFrameHeaderBytes <= rest; at += walFrameHeaderBytes { // frames are aligned, and t.end is
		commit := data[at] == walFrameCommit && data[at+1]|data[at+2]|data[at+3] == 0
		if commit && t.isDamage(data, at) {
			return t
		}
	}
	for at := from; at+walFrameHeaderBytes <= rest; {
		if t.isDamage(data, at) {
			return t
		}
		next, ok := nextFrame(data, at)
		if !ok {
			break
		}
		at = next
	}
	return t
}

// isDamage notes whether a whole append begins behind the frame header at at.
func (t *segmentTail) isDamage(data []byte, at int) bool {
	next := at + walFrameHeaderBytes
	if a, ok := scanAppend(data, next, next); ok && a.entries > 0 {
		t.damage = next
	}
	return t.damage != 0
}

// scanAppend reads the append whose first frame is at from; its commit's CRC is
// over all from sumFrom on.
func scanAppend(data []byte, sumFrom, from int) (a segmentTail, ok bool) {
	for at := from; ; {
		next, ok := nextFrame(data, at)
		if !ok {
			return a, false
		}
		switch data[at] {
		case walFrameCommit:
			a.end = next
			return a, binary.LittleEndian.Uint32(data[at+4:]) == crc32.Checksum(data[sumFrom:at], walCRC)
		case walFrameEntry:
			a.entries++
		case walFrameIndex:
			a.index = uint64(at + walFrameHeaderBytes)
		}
		at = next
	}
}

// nextFrame is where the frame at at ends, not ok if none is there. It may be
// behind the end of data.
func nextFrame(data []byte, at int) (next int, ok bool) {
	if at+walFrameHeaderBytes > len(data) {
		return 0, false
	}
	head := data[at : at+walFrameHeaderBytes]
	if head[1]|head[2]|head[3] != 0 { // of a commit, they are in no CRC
		return 0, false
	}
	next = at + walFrameHeaderBytes
	switch n := binary.LittleEndian.Uint32(head[4:]); head[0] {
	case walFrameCommit:
		return next, true
	case walFrameEntry, walFrameIndex:
		if uint64(n) > uint64(len(data)) {
			return 0, false
		}
		return next + (int(n)+walFrameHeaderBytes-1)/walFrameHeaderBytes*walFrameHeaderBytes, true
	}
	return 0, false
}
