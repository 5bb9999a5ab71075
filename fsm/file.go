package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The snapshot file, version 1. Numbers are big-endian.
//
//	magic    8 bytes "BATONSNP"
//	version  u32
//	blocks   until the end of the file, each
//	  raw length         u32, of the decompressed content
//	  compressed length  u32
//	  checksum           u64, xxhash64 of the compressed bytes
//	  compressed bytes   zstd
//
// A block's content is whole SnapshotRecords, each preceded by its length as a
// protobuf varint. The last record of the last block is the SnapshotEnd, with
// the number of records before it and the state hash: it shows blocks that are
// missing, repeated or of another file.
const (
	fileMagic   = "BATONSNP"
	fileVersion = 1

	blockHeaderBytes = 4 + 4 + 8
	// blockBytes is where a block is ended: large enough to compress well, small
	// enough that a bad one is found early.
	blockBytes = 256 << 10
	// RecordBytesMax bounds one record. The largest is a session with state,
	// outbox, replies and windows all full: below 4 MiB.
	RecordBytesMax = 8 << 20
	rawBytesMax    = blockBytes + RecordBytesMax + 16
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
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	defer enc.Close()
	b := blockWriter{w: w, enc: enc}
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
	enc  *zstd.Encoder
	raw  []byte
	comp []byte
}

func (b *blockWriter) record(rec *wire.SnapshotRecord) error {
	size := proto.Size(rec)
	if size > RecordBytesMax {
		return badFile("a record has %d bytes, at most %d are valid", size, RecordBytesMax)
	}
	var err error
	b.raw = protowire.AppendVarint(b.raw, uint64(size))
	b.raw, err = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b.raw, rec)
	if err != nil {
		return err
	}
	if len(b.raw) < blockBytes {
		return nil
	}
	return b.flush()
}

func (b *blockWriter) flush() error {
	if len(b.raw) == 0 {
		return nil
	}
	b.comp = append(b.comp[:0], make([]byte, blockHeaderBytes)...)
	b.comp = b.enc.EncodeAll(b.raw, b.comp)
	body := b.comp[blockHeaderBytes:]
	binary.BigEndian.PutUint32(b.comp[0:], uint32(len(b.raw)))
	binary.BigEndian.PutUint32(b.comp[4:], uint32(len(body)))
	binary.BigEndian.PutUint64(b.comp[8:], xxhash.Sum64(body))
	b.raw = b.raw[:0]
	_, err := b.w.Write(b.comp)
	return err
}

// CheckSnapshot verifies a snapshot file from first to last byte, the state
// hash included, without keeping it. An unusable file is a *wire.Error with
// SNAPSHOT_BAD.
func CheckSnapshot(r io.Reader) error {
	return readFile(r, store.Check)
}

// ReadSnapshot reads a snapshot file into a new store: all of it, or an error,
// which for an unusable file is a *wire.Error with SNAPSHOT_BAD.
func ReadSnapshot(r io.Reader) (*store.Store, error) {
	var s *store.Store
	err := readFile(r, func(next func() (*wire.SnapshotRecord, error)) (err error) {
		s, err = store.Load(next)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func readFile(r io.Reader, consume func(next func() (*wire.SnapshotRecord, error)) error) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(rawBytesMax))
	if err != nil {
		return err
	}
	defer dec.Close()
	b := blockReader{r: r, dec: dec}
	if err := b.header(); err != nil {
		return err
	}
	err = consume(b.next)
	if err != nil && wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
		return badFile("%v: restore another snapshot, or let this node join again", err)
	}
	return err
}

type blockReader struct {
	r      io.Reader
	dec    *zstd.Decoder
	blocks int
	comp   bytes.Buffer
	buf    []byte // decompressed block
	rest   []byte // what of it is not consumed
}

func (b *blockReader) header() error {
	header := make([]byte, len(fileMagic)+4)
	if _, err := io.ReadFull(b.r, header); err != nil {
		return badFile("no header: %v", err)
	}
	if string(header[:len(fileMagic)]) != fileMagic {
		return badFile("this is not one (wrong magic)")
	}
	if v := binary.BigEndian.Uint32(header[len(fileMagic):]); v != fileVersion {
		return badFile("format %d, this build reads %d: use the version that wrote it", v, fileVersion)
	}
	return nil
}

// next returns the next record, or io.EOF at the end of the last block.
func (b *blockReader) next() (*wire.SnapshotRecord, error) {
	if len(b.rest) == 0 {
		if err := b.block(); err != nil {
			return nil, err
		}
	}
	body, n := protowire.ConsumeBytes(b.rest)
	if n < 0 || len(body) > RecordBytesMax {
		return nil, badFile("block %d: bad record length", b.blocks)
	}
	b.rest = b.rest[n:]
	items := itemsMax
	if err := recordShape.walk(body, &items); err != nil {
		return nil, badFile("block %d: %v", b.blocks, err)
	}
	rec := &wire.SnapshotRecord{}
	if err := proto.Unmarshal(body, rec); err != nil {
		return nil, badFile("block %d: %v", b.blocks, err)
	}
	return rec, nil
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
	b.buf, err = b.dec.DecodeAll(b.comp.Bytes(), b.buf[:0])
	if err != nil || len(b.buf) != int(raw) {
		return badFile("block %d: %d bytes instead of %d: %v", b.blocks, len(b.buf), raw, err)
	}
	b.rest = b.buf
	return nil
}
