package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"

	"github.com/baton-cluster/baton/wire"
)

const headerBytes = len(fileMagic) + 4

func TestFileRoundTrip(t *testing.T) {
	for name, f := range map[string]*FSM{
		"empty":       New(nil),
		"small":       populated(t, 3, 10),
		"many blocks": populated(t, 3000, 500),
		"big rows":    populated(t, 5, wire.ValueBytesMax),
	} {
		t.Run(name, func(t *testing.T) {
			file := snapshotFile(t, f)
			s, err := ReadSnapshot(bytes.NewReader(file))
			if err != nil {
				t.Fatal(err)
			}
			if hash, at, _ := f.HashAt(0); s.Hash() != hash || s.Index() != at {
				t.Fatalf("hash %x at %d, want %x at %d", s.Hash(), s.Index(), hash, at)
			}
		})
	}
	if n := len(blocks(snapshotFile(t, populated(t, 3000, 500)))); n < 3 {
		t.Fatalf("only %d blocks: the test does not show much", n)
	}
}

// testdata/snapshot-vN was written by the first version that had format N. It
// must be readable, with the hash that it had then, as long as that format is.
func TestFileGolden(t *testing.T) {
	for version := zstdVersion; version <= fileVersion; version++ {
		name := fmt.Sprintf("testdata/snapshot-v%d", version)
		if os.Getenv("WRITE_GOLDEN") != "" && version == fileVersion {
			if err := os.WriteFile(name, snapshotFile(t, populated(t, 20, 50)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		file, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint32(file[len(fileMagic):]); got != uint32(version) {
			t.Errorf("%s has format %d", name, got)
		}
		s, err := ReadSnapshot(bytes.NewReader(file))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.Counts().Sessions != 20 || s.Index() != 21 {
			t.Errorf("%s: %d sessions at index %d", name, s.Counts().Sessions, s.Index())
		}
		for n := range file {
			refused(t, name+" cut", file[:n])
			bad := bytes.Clone(file)
			bad[n] ^= 1 << (n % 8)
			refused(t, name+" flipped", bad)
		}
	}
}

// refused: the reader refuses the file, with the typed error.
func refused(t *testing.T, name string, file []byte) {
	t.Helper()
	s, err := ReadSnapshot(bytes.NewReader(file))
	if s != nil || wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
		t.Errorf("%s: ReadSnapshot: %v", name, err)
	}
}

func TestEveryTruncationIsFound(t *testing.T) {
	file := snapshotFile(t, populated(t, 3, 20))
	for n := range len(file) {
		refused(t, "cut", file[:n])
	}
	refused(t, "longer", append(bytes.Clone(file), 0))
}

func TestEveryBitFlipIsFound(t *testing.T) {
	file := snapshotFile(t, populated(t, 2, 20))
	for i := range file {
		for bit := range 8 {
			if i >= headerBytes+blockHeaderBytes && bit != i%8 {
				continue // one bit of each byte will do where a checksum guards it
			}
			bad := bytes.Clone(file)
			bad[i] ^= 1 << bit
			refused(t, "flip", bad)
		}
	}
}

func blocks(file []byte) [][]byte {
	var list [][]byte
	for rest := file[headerBytes:]; len(rest) > 0; {
		n := blockHeaderBytes + int(binary.BigEndian.Uint32(rest[4:]))
		list = append(list, rest[:n])
		rest = rest[n:]
	}
	return list
}

// Blocks that are whole, but not where they belong.
func TestMisplacedBlocksAreFound(t *testing.T) {
	file := snapshotFile(t, populated(t, 3000, 500))
	list := blocks(file)
	join := func(blocks ...[]byte) []byte {
		return append(bytes.Clone(file[:headerBytes]), bytes.Join(blocks, nil)...)
	}
	last := len(list) - 1
	refused(t, "without the first", join(list[1:]...))
	refused(t, "without the last", join(list[:last]...))
	refused(t, "without the second", join(append([][]byte{list[0]}, list[2:]...)...))
	refused(t, "one twice", join(append([][]byte{list[0], list[1]}, list[1:]...)...))
	refused(t, "swapped", join(append([][]byte{list[1], list[0]}, list[2:]...)...))
	refused(t, "the last twice", join(append(append([][]byte{}, list...), list[last])...))
	other := blocks(snapshotFile(t, populated(t, 3000, 499)))
	refused(t, "of another snapshot", join(append([][]byte{other[0]}, list[1:]...)...))
}

// A length that lies costs next to nothing.
func TestLyingLengthsAllocateLittle(t *testing.T) {
	header := append([]byte(fileMagic), 0, 0, 0, fileVersion)
	for _, lengths := range [][2]uint32{{rawBytesMax, rawBytesMax}, {1 << 31, 1 << 31}, {1, 1<<32 - 1}, {0, 5}, {5, 0}} {
		file := binary.BigEndian.AppendUint32(bytes.Clone(header), lengths[0])
		file = binary.BigEndian.AppendUint32(file, lengths[1])
		file = append(file, make([]byte, 100)...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ReadSnapshot(bytes.NewReader(file))
		runtime.ReadMemStats(&after)
		if wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
			t.Errorf("%v: %v", lengths, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 2<<20 {
			t.Errorf("%v: %d bytes allocated", lengths, used)
		}
	}
}

// Nor does the length that a compressed block claims by itself, with a checksum that fits.
func TestLyingBlockAllocatesLittle(t *testing.T) {
	body := binary.AppendUvarint(nil, 1<<32-1)
	file := append([]byte(fileMagic), 0, 0, 0, fileVersion)
	file = binary.BigEndian.AppendUint32(file, 100)
	file = binary.BigEndian.AppendUint32(file, uint32(len(body)))
	file = append(binary.BigEndian.AppendUint64(file, xxhash.Sum64(body)), body...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	refused(t, "a block that claims 4 GiB", file)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 2<<20 {
		t.Errorf("%d bytes allocated", used)
	}
}

// A block of nothing but empty records costs no more than its largest honest one.
func TestCrumbsAllocateLittle(t *testing.T) {
	// The second is records of one part each: a session's row without anything in it.
	for name, raw := range map[string][]byte{
		"empty":    make([]byte, RecordBytesMax),
		"one part": bytes.Repeat([]byte{2, 3<<3 | 2, 0}, RecordBytesMax/3),
	} {
		body := s2.Encode(nil, raw)
		file := append([]byte(fileMagic), 0, 0, 0, fileVersion)
		file = binary.BigEndian.AppendUint32(file, uint32(len(raw)))
		file = binary.BigEndian.AppendUint32(file, uint32(len(body)))
		file = append(binary.BigEndian.AppendUint64(file, xxhash.Sum64(body)), body...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		refused(t, name, file)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 128<<20 {
			t.Errorf("%s: %d bytes allocated", name, used)
		}
	}
}

type failing struct {
	after int
	err   error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func TestWriteErrorsAreReturned(t *testing.T) {
	f := populated(t, 3000, 500)
	size := len(snapshotFile(t, f))
	full := errors.New("disk full")
	for _, after := range []int{0, headerBytes, size / 2, size - 1} {
		f.mu.Lock()
		snap := f.store.Snapshot()
		f.mu.Unlock()
		if err := WriteSnapshot(&failing{after, full}, snap); !errors.Is(err, full) {
			t.Errorf("after %d bytes: %v", after, err)
		}
	}
}

func FuzzReadSnapshot(f *testing.F) {
	file := snapshotFile(f, populated(f, 3, 20))
	f.Add(file, true)
	f.Add(file[:len(file)/2], false)
	f.Add(snapshotFile(f, New(nil)), true)
	f.Add([]byte(fileMagic), false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix { // the checksum of the first block, so that what is below it is reached
			b = bytes.Clone(b)
			if len(b) >= headerBytes+blockHeaderBytes {
				head, body := b[headerBytes:], b[headerBytes+blockHeaderBytes:]
				if n := binary.BigEndian.Uint32(head[4:]); int64(n) <= int64(len(body)) {
					binary.BigEndian.PutUint64(head[8:], xxhash.Sum64(body[:n]))
				}
			}
		}
		s, err := ReadSnapshot(bytes.NewReader(b))
		if err != nil && wire.CodeOf(err) != wire.Code_SNAPSHOT_BAD {
			t.Fatalf("not the typed error: %v", err)
		}
		if (s == nil) != (err != nil) {
			t.Fatalf("a store %v, error %v", s != nil, err)
		}
	})
}

func BenchmarkWriteSnapshot(b *testing.B) {
	f := populated(b, 10_000, 200)
	b.SetBytes(int64(len(snapshotFile(b, f))))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		snapshotFile(b, f)
	}
}

func BenchmarkReadSnapshot(b *testing.B) {
	file := snapshotFile(b, populated(b, 10_000, 200))
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := ReadSnapshot(bytes.NewReader(file)); err != nil {
			b.Fatal(err)
		}
	}
}
