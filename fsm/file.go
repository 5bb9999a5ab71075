package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The snapshot file, version 2. Numbers are big-endian.
//
//	magic    8 bytes "BATONSNP"
//	version  u32
//	blocks   until the end of the file, each
//	  raw length         u32, of the decompressed content
//	  compressed length  u32
//	  checksum           u64, xxhash64 of the compressed bytes
//	  compressed bytes   an S2 block; in version 1, zstd
//
// A block's content is whole SnapshotRecords, each preceded by its length as a
// protobuf varint. The last record of the last block is the SnapshotEnd, with
// the number of records before it and the state hash: it shows blocks that are
// missing, repeated or of another file.
const (
	fileMagic   = "BATONSNP"
	fileVersion = 2
	// zstdVersion had files a fifth smaller, for nearly twice the time to write them.
	zstdVersion = 1

	blockHeaderBytes = 4 + 4 + 8
	// blockBytes is where a block is ended: large enough to compress well, small
	// enough that a bad one is found early.
	blockBytes = 256 << 10
	// RecordBytesMax bounds one record. The largest is a session with state,
	// outbox, replies and windows all full: below 4 MiB.
	RecordBytesMax = 8 << 20
	rawBytesMax    = blockBytes + RecordBytesMax + 16
	// blockItemsMax bounds a block's records and the parts of them: those of the last
	// as itemsMax says, those before have two bytes each, at least.
	blockItemsMax = itemsMax + blockBytes/2
	// readStep is how much is allocated ahead of what has been read, so that a
	// length which lies costs nothing.
	readStep = 64 << 10
)

// badFile makes the error for a file that cannot be used.
func badFile(format string, args ...any) error {
	return wire.Errorf(wire.Code_SNAPSHOT_BAD, "snapshot file: %s", fmt.Sprintf(format, args...))
}

// WriteSnapshot writes a snapshot file. It does not sync.
func WriteSnapshot(w io.Writer, s *store.Snapshot) error {
	b := blockWriter{w: w}
	header := binary.BigEndian.AppendUint32([]byte(fileMagic), fileVersion)
	if _, err := w.Write(header); err != nil {
		return err
	}
	if err := s.Records(b.record); err != nil {
		return err
	}
	return b.flush()
}

type blockWriter struct {
	w    io.Writer
	raw  []byte
	comp []byte
}

func (b *blockWriter) record(rec []byte) error {
	if len(rec) > RecordBytesMax {
		return badFile("a record has %d bytes, at most %d are valid", len(rec), RecordBytesMax)
	}
	b.raw = protowire.AppendBytes(b.raw, rec)
	if len(b.raw) < blockBytes {
		return nil
	}
	return b.flush()
}

func (b *blockWriter) flush() error {
	if len(b.raw) == 0 {
		return nil
	}
	if need := blockHeaderBytes + s2.MaxEncodedLen(len(b.raw)); len(b.comp) < need {
		b.comp = make([]byte, need)
	}
	body := s2.Encode(b.comp[blockHeaderBytes:], b.raw)
	binary.BigEndian.PutUint32(b.comp[0:], uint32(len(b.raw)))
	binary.BigEndian.PutUint32(b.comp[4:], uint32(len(body)))
	binary.BigEndian.PutUint64(b.comp[8:], xxhash.Sum64(body))
	b.raw = b.raw[:0]
	_, err := b.w.Write(b.comp[:blockHeaderBytes+len(body)])
	runtime.Gosched() // the next block can wait, and entries should not
	return err
}

// ReadSnapshot reads a snapshot file into a new store: all of it, verified from first
// to last byte, the state hash included, or an error, which for an unusable file is a
// *wire.Error with SNAPSHOT_BAD. Blocks are decoded on one goroutine while rows are
// built from those before on another.
func ReadSnapshot(r io.Reader) (*store.Store, error) {
	b := blockReader{r: r, expand: expandS2}
	version, err := b.header()
	if err != nil {
		return nil, err
	}
	if version == zstdVersion {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(rawBytesMax))
		if err != nil {
			return nil, err
		}
		defer dec.Close()
		b.expand = func(buf, comp []byte, _ int) ([]byte, error) { return dec.DecodeAll(comp, buf[:0]) }
	}
	a := b.ahead()
	defer a.stop()
	s, err := store.Load(a.next)
	if err != nil && wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
		err = badFile("%v: restore another snapshot, or let this node join again", err)
	}
	return s, err
}

// readAhead is a file whose blocks are decoded before they are asked for.
type readAhead struct {
	blocks  chan decoded
	stopped chan struct{}
	now     decoded
}

// decoded is the records of a block, and why there is no block after it.
type decoded struct {
	records []*wire.SnapshotRecord
	err     error
}

func (b *blockReader) ahead() *readAhead {
	a := &readAhead{blocks: make(chan decoded, 1), stopped: make(chan struct{})}
	go func() {
		defer close(a.blocks)
		for {
			var d decoded
			d.records, d.err = b.records()
			select {
			case a.blocks <- d:
			case <-a.stopped:
				return
			}
			if d.err != nil {
				return
			}
		}
	}()
	return a
}

// next returns the next record, or io.EOF at the end of the last block.
func (a *readAhead) next() (*wire.SnapshotRecord, error) {
	for len(a.now.records) == 0 {
		if a.now.err != nil {
			return nil, a.now.err
		}
		a.now = <-a.blocks
	}
	rec := a.now.records[0]
	a.now.records = a.now.records[1:]
	return rec, nil
}

// stop waits until nothing reads the file any more.
func (a *readAhead) stop() {
	close(a.stopped)
	for range a.blocks { // until it is closed
	}
}

type blockReader struct {
	r io.Reader
	// expand decompresses a block that claims to have raw bytes, into buf if that is
	// large enough.
	expand func(buf, comp []byte, raw int) ([]byte, error)
	blocks int
	comp   bytes.Buffer
	buf    []byte // decompressed block
}

// expandS2 looks at the block's own length first: Decode allocates as much.
func expandS2(buf, comp []byte, raw int) ([]byte, error) {
	if n, err := s2.DecodedLen(comp); err != nil || n != raw {
		return nil, s2.ErrCorrupt
	}
	return s2.Decode(buf[:cap(buf)], comp)
}

func (b *blockReader) header() (version uint32, err error) {
	header := make([]byte, len(fileMagic)+4)
	if _, err := io.ReadFull(b.r, header); err != nil {
		return 0, badFile("no header: %v", err)
	}
	if string(header[:len(fileMagic)]) != fileMagic {
		return 0, badFile("this is not one (wrong magic)")
	}
	version = binary.BigEndian.Uint32(header[len(fileMagic):])
	if version < zstdVersion || version > fileVersion {
		return 0, badFile("format %d, this build reads %d to %d: use the version that wrote it", version, zstdVersion, fileVersion)
	}
	return version, nil
}

// records returns those of the next block, or io.EOF after the last.
func (b *blockReader) records() ([]*wire.SnapshotRecord, error) {
	if err := b.block(); err != nil {
		return nil, err
	}
	var list []*wire.SnapshotRecord
	items := blockItemsMax
	for rest := b.buf; len(rest) > 0; {
		body, n := protowire.ConsumeBytes(rest)
		if items--; n < 0 || len(body) > RecordBytesMax || items < 0 {
			return list, badFile("block %d: bad record length", b.blocks)
		}
		rest = rest[n:]
		if err := recordShape.walk(body, &items); err != nil {
			return list, badFile("block %d: %v", b.blocks, err)
		}
		rec := &wire.SnapshotRecord{}
		if err := proto.Unmarshal(body, rec); err != nil {
			return list, badFile("block %d: %v", b.blocks, err)
		}
		list = append(list, rec)
	}
	return list, nil
}

// block reads, verifies and decompresses the next block.
func (b *blockReader) block() error {
	var header [blockHeaderBytes]byte
	if _, err := io.ReadFull(b.r, header[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		return badFile("block %d: cut off in its header", b.blocks+1)
	}
	b.blocks++
	raw := binary.BigEndian.Uint32(header[0:])
	comp := binary.BigEndian.Uint32(header[4:])
	if raw == 0 || raw > rawBytesMax || comp == 0 || comp > rawBytesMax {
		return badFile("block %d: lengths %d and %d are out of bounds", b.blocks, raw, comp)
	}
	b.comp.Reset()
	for left := int64(comp); left > 0; {
		n, err := io.CopyN(&b.comp, b.r, min(left, readStep))
		left -= n
		if err != nil {
			return badFile("block %d: cut off: %v", b.blocks, err)
		}
	}
	if xxhash.Sum64(b.comp.Bytes()) != binary.BigEndian.Uint64(header[8:]) {
		return badFile("block %d: checksum mismatch: the file is damaged", b.blocks)
	}
	var err error
	b.buf, err = b.expand(b.buf, b.comp.Bytes(), int(raw))
	if err != nil || len(b.buf) != int(raw) {
		return badFile("block %d: %d bytes instead of %d: %v", b.blocks, len(b.buf), raw, err)
	}
	return nil
}
