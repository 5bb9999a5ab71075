package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/types"
	"pgregory.net/rapid"

	"github.com/baton-cluster/baton/wire"
)

// testSegment is small, so that a few entries fill a segment.
const testSegment = 4096

func testEntry(index uint64) *raft.Log {
	return &raft.Log{
		Index: index, Term: 1 + index/10, Type: raft.LogCommand, Extensions: []byte{1},
		Data: bytes.Repeat([]byte{byte(index)}, 100+int(index%7)), AppendedAt: time.Unix(int64(index), 0).UTC(),
	}
}

// openWAL opens a log of small segments in dir.
func openWAL(dir string) (*walLog, error) {
	logs, _, _, _, err := WALDisk{SegmentBytes: testSegment}.Open(dir)
	if err != nil {
		return nil, err
	}
	return logs.(*walLog), nil
}

func mustWAL(t interface{ Fatal(...any) }, dir string) *walLog {
	l, err := openWAL(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// filled makes a log of n entries, an append each, and returns its directory
// after a clean stop, or as a crash leaves it.
func filled(t *testing.T, n uint64, clean bool) string {
	t.Helper()
	dir := t.TempDir()
	l := mustWAL(t, dir)
	for i := uint64(1); i <= n; i++ {
		must(t, l.StoreLog(testEntry(i)))
	}
	if clean {
		must(t, l.Close())
		return dir
	}
	crashed := crash(t, dir)
	must(t, l.Close())
	return crashed
}

// crash copies what is on the disk while the log is still open.
func crash(t interface{ Fatal(...any) }, dir string) string {
	to, err := os.MkdirTemp(filepath.Dir(dir), "crashed")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tailFile is the segment that is being written.
func tailFile(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, walDir, "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("segments %v %v", files, err)
	}
	return files[len(files)-1]
}

// edit changes a file in place.
func edit(t *testing.T, path string, fn func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, fn(data), 0o600))
}

// sameEntry compares what raft reads.
func sameEntry(l raft.LogStore, index uint64) error {
	var got raft.Log
	if err := l.GetLog(index, &got); err != nil {
		return err
	}
	want := testEntry(index)
	if got.Index != want.Index || got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) ||
		!bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
		return fmt.Errorf("entry %d reads %+v", index, got)
	}
	return nil
}

func span(t interface{ Fatal(...any) }, l raft.LogStore) (first, last uint64) {
	first, err := l.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	if last, err = l.LastIndex(); err != nil {
		t.Fatal(err)
	}
	return first, last
}

// wholeLog fails unless the log in dir holds exactly the entries lo to hi and
// takes another.
func wholeLog(t *testing.T, dir string, lo, hi uint64) {
	t.Helper()
	l := mustWAL(t, dir)
	defer func() { must(t, l.Close()) }()
	if first, last := span(t, l); first != lo || last != hi {
		t.Fatalf("the log holds %d to %d, want %d to %d", first, last, lo, hi)
	}
	for i := lo; i <= hi; i++ {
		must(t, sameEntry(l, i))
	}
	must(t, l.StoreLog(testEntry(hi+1)))
	must(t, sameEntry(l, hi+1))
}

func TestWALSurvivesCrashes(t *testing.T) {
	for _, n := range []uint64{1, 5, 40, 100} {
		wholeLog(t, filled(t, n, true), 1, n)
		wholeLog(t, filled(t, n, false), 1, n)
	}
}

// lastAppend is where the last append begins and ends in a segment.
func lastAppend(data []byte) (from, to int) {
	t := scanSegment(data)
	for cut := t.end - walFrameHeaderBytes; cut > 0; cut -= walFrameHeaderBytes {
		if s := scanSegment(data[:cut]); s.end > 0 && s.entries < t.entries {
			return s.end, t.end
		}
	}
	return walHeaderBytes, t.end
}

// TestWALTornAppend: a crash may leave any part of the last append, which nobody
// was told of; and what is left of it must not come back behind a shorter one.
func TestWALTornAppend(t *testing.T) {
	const n = 8
	for name, tear := range map[string]func([]byte){
		"its end is missing":       func(b []byte) { clear(b[len(b)/2:]) },
		"its beginning is missing": func(b []byte) { clear(b[:len(b)/2]) },
		"its middle is missing":    func(b []byte) { clear(b[24:48]) },
		"only its commit is there": func(b []byte) { clear(b[:len(b)-8]) },
		"its commit is missing":    func(b []byte) { clear(b[len(b)-8:]) },
		"a bit is wrong":           func(b []byte) { b[20] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, n, false)
			path := tailFile(t, dir)
			edit(t, path, func(data []byte) []byte {
				from, to := lastAppend(data)
				tear(data[from:to])
				return data
			})
			l := mustWAL(t, dir)
			if _, last := span(t, l); last != n-1 {
				t.Errorf("the log ends at %d, want %d", last, n-1)
			}
			must(t, l.Close())
			data, err := os.ReadFile(path)
			must(t, err)
			if rest := bytes.TrimRight(data[scanSegment(data).end:], "\x00"); len(rest) > 0 {
				t.Errorf("%d bytes of it are left", len(rest))
			}
			wholeLog(t, dir, 1, n-1)
		})
	}
	t.Run("after a clean stop it is damage", func(t *testing.T) {
		dir := filled(t, n, true)
		edit(t, tailFile(t, dir), func(data []byte) []byte {
			from, to := lastAppend(data)
			clear(data[from:to])
			return data
		})
		refused(t, dir)
	})
}

func refused(t *testing.T, dir string) {
	t.Helper()
	l, err := openWAL(dir)
	if err == nil {
		first, last := span(t, l)
		t.Errorf("the log opens, with %d to %d", first, last)
		_ = l.Close()
		return
	}
	if wire.CodeOf(err) != wire.Code_INTERNAL || !strings.Contains(err.Error(), "remove this node's data directory") {
		t.Errorf("%v", err)
	}
	// The refusal left nothing open: the second is the same, and no wait for ever.
	if _, again := openWAL(dir); wire.CodeOf(again) != wire.Code_INTERNAL {
		t.Errorf("again: %v", again)
	}
}

// TestWALFlippedBits flips one bit at a time, anywhere in the files. The log is
// refused, or it is whole but for entries whose reading fails.
func TestWALFlippedBits(t *testing.T) {
	const n = 30 // an old segment and a begun one
	for _, clean := range []bool{true, false} {
		dir := filled(t, n, clean)
		files, err := filepath.Glob(filepath.Join(dir, walDir, "*.wal"))
		must(t, err)
		if len(files) != 2 {
			t.Fatalf("%d segments, want 2", len(files))
		}
		for f, path := range files {
			whole, err := os.ReadFile(path)
			must(t, err)
			end := len(bytes.TrimRight(whole, "\x00"))
			last := f == len(files)-1
			from, _ := lastAppend(whole)
			flip := func(at, bit int) {
				damaged := bytes.Clone(whole)
				damaged[at] ^= 1 << bit
				must(t, os.WriteFile(path, damaged, 0o600))
				// The last append of a crash cannot be told from a torn one.
				shorter := uint64(0)
				if last && !clean && at >= from {
					shorter = 1
				}
				flippedBit(t, dir, fmt.Sprintf("%s byte %d bit %d", filepath.Base(path), at, bit), n-shorter)
			}
			for at := 0; at < end; at += flipStep(at, end) {
				flip(at, at%8)
			}
			// The commit before the last append is all that parts one lost append from two.
			for at := from - walFrameHeaderBytes; last && at < from; at++ {
				for bit := range 8 {
					flip(at, bit)
				}
			}
			must(t, os.WriteFile(path, whole, 0o600))
		}
	}
}

// flipStep goes slowly over the header and the first entry, and over the last.
func flipStep(at, end int) int {
	if at < 100 || at > end-200 {
		return 7
	}
	return 97
}

func flippedBit(t *testing.T, dir, what string, atLeast uint64) {
	t.Helper()
	copied := crash(t, dir)
	defer func() { _ = os.RemoveAll(copied) }()
	l, err := openWAL(copied)
	if err != nil {
		if wire.CodeOf(err) != wire.Code_INTERNAL {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	defer func() { _ = l.Close() }()
	first, last := span(t, l)
	if first != 1 || last < atLeast {
		t.Errorf("%s: the log holds %d to %d", what, first, last)
	}
	for i := first; i <= last; i++ {
		if err := sameEntry(l, i); err != nil && errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("%s: entry %d: %v", what, i, err)
		} else if err != nil && strings.Contains(err.Error(), "reads") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestWALDamage(t *testing.T) {
	const n = 60
	meta := filepath.Join(walDir, metadb.FileName)
	for name, damage := range map[string]func(t *testing.T, dir string){
		"the last segment is cut short":  func(t *testing.T, dir string) { must(t, os.Truncate(tailFile(t, dir), 500)) },
		"the last segment is empty":      func(t *testing.T, dir string) { must(t, os.Truncate(tailFile(t, dir), 0)) },
		"the last segment is gone":       func(t *testing.T, dir string) { must(t, os.Remove(tailFile(t, dir))) },
		"an old segment is cut short":    func(t *testing.T, dir string) { must(t, os.Truncate(firstFile(t, dir), 100)) },
		"an old segment lost its index":  func(t *testing.T, dir string) { must(t, os.Truncate(firstFile(t, dir), 3000)) },
		"an old segment is gone":         func(t *testing.T, dir string) { must(t, os.Remove(firstFile(t, dir))) },
		"the metadata are gone":          func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, meta))) },
		"the metadata are cut short":     func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, meta), 9000)) },
		"the metadata are zeros":         func(t *testing.T, dir string) { write(t, filepath.Join(dir, meta), make([]byte, 1<<15)) },
		"a segment took another's place": func(t *testing.T, dir string) { edit(t, tailFile(t, dir), readFile(t, firstFile(t, dir))) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filled(t, n, true)
			damage(t, dir)
			refused(t, dir)
		})
	}
}

func firstFile(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, walDir, "*.wal"))
	if err != nil || len(files) < 2 {
		t.Fatalf("segments %v %v", files, err)
	}
	return files[0]
}

func readFile(t *testing.T, path string) func([]byte) []byte {
	data, err := os.ReadFile(path)
	must(t, err)
	return func([]byte) []byte { return data }
}

// heldBeside holds up changes of the list of segments, but for the first, which
// makes it.
type heldBeside struct {
	osBeside
	gate chan struct{}
}

func (b heldBeside) Meta() types.MetaStore {
	return &heldMeta{MetaStore: b.osBeside.Meta(), gate: b.gate}
}

type heldMeta struct {
	types.MetaStore
	gate chan struct{}
	made bool
}

func (m *heldMeta) CommitState(s types.PersistentState) error {
	if m.made {
		<-m.gate
	}
	m.made = true
	return m.MetaStore.CommitState(s)
}

// TestWALFullSegmentAtCrash: the append that fills a segment is answered before
// the metadata know of it.
func TestWALFullSegmentAtCrash(t *testing.T) {
	dir, gate := t.TempDir(), make(chan struct{})
	logs, _, _, closer, err := WALDisk{SegmentBytes: testSegment, Beside: heldBeside{gate: gate}}.Open(dir)
	must(t, err)
	full := uint64(0)
	for i := uint64(1); full == 0; i++ {
		must(t, logs.StoreLogs([]*raft.Log{testEntry(i)}))
		data, err := os.ReadFile(tailFile(t, dir))
		must(t, err)
		if scanSegment(data).index != 0 {
			full = i
		}
	}
	crashed := crash(t, dir)
	close(gate)
	must(t, closer.Close())
	wholeLog(t, crashed, 1, full)
	wholeLog(t, dir, 1, full)
}

// fullFiles have no room for another segment. As on ext4, as much of the file is made as
// there is room for.
type fullFiles struct {
	types.VFS
	room   int64
	killed bool // before what is left can be removed
}

func (f fullFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	w, err := f.VFS.Create(dir, name, size)
	if err != nil {
		return nil, err
	}
	return nil, errors.Join(w.Close(), os.Truncate(filepath.Join(dir, name), f.room), syscall.ENOSPC)
}

func (f fullFiles) Delete(dir, name string) error {
	if f.killed {
		return errors.New("killed before")
	}
	return f.VFS.Delete(dir, name)
}

// TestWALFullDisk: a log that found no room for its next segment goes on when there is
// some, whatever the file system and a kill left of it; until then it says what to do.
func TestWALFullDisk(t *testing.T) {
	for _, room := range []int64{0, 1000} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("room %d killed %v", room, killed), func(t *testing.T) {
				dir := filled(t, 1, true)
				full := WALDisk{SegmentBytes: testSegment, Files: fullFiles{fs.New(), room, killed}}
				logs, _, _, closer, err := full.Open(dir)
				must(t, err)
				last := uint64(1)
				for ; err == nil; last++ {
					err = logs.StoreLogs([]*raft.Log{testEntry(last + 1)})
				}
				last--
				_ = closer.Close()
				if !killed { // else it takes the file's name for a file that is there
					_, _, _, _, err = full.Open(dir)
					if wire.CodeOf(err) != wire.Code_UNAVAILABLE || !strings.Contains(err.Error(), "make room") {
						t.Errorf("on the full disk: %v", err)
					}
				}
				for range 3 {
					wholeLog(t, dir, 1, last)
					last++
				}
			})
		}
	}
}

// TestWALTwin does at random what raft does, with stops and crashes, on the log
// and on a slice.
func TestWALTwin(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "twin")
		if err != nil {
			t.Fatal(err)
		}
		l := mustWAL(t, dir)
		defer func() { _ = l.Close() }()
		first, next := uint64(1), uint64(1) // holds [first, next)
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0, 1:
				var logs []*raft.Log
				for range rapid.IntRange(1, 12).Draw(t, "entries") {
					logs = append(logs, testEntry(next))
					next++
				}
				check(l.StoreLogs(logs))
			case 2: // a conflict
				if first < next {
					lo := rapid.Uint64Range(first, next-1).Draw(t, "from")
					check(l.DeleteRange(lo, next-1))
					next = lo
					first = min(first, next)
				}
			case 3: // a trim
				if first < next {
					hi := rapid.Uint64Range(first, next-1).Draw(t, "up to")
					check(l.DeleteRange(first, hi))
					first = hi + 1
				}
			case 4:
				check(l.Close())
				l = mustWAL(t, dir)
			case 5:
				crashed := crash(t, dir)
				check(l.Close())
				dir = crashed
				l = mustWAL(t, dir)
			}
			wantFirst, wantLast := first, next-1
			if first == next {
				wantFirst, wantLast = 0, 0
			}
			if a, b := span(t, l); a != wantFirst || b != wantLast {
				t.Fatalf("the log holds %d to %d, want %d to %d", a, b, wantFirst, wantLast)
			}
			for i := first; i < next; i++ {
				check(sameEntry(l, i))
			}
		}
	})
}

// TestWALStable: the vote is as durable as the log.
func TestWALStable(t *testing.T) {
	dir := t.TempDir()
	logs, stable, _, closer, err := WALDisk{SegmentBytes: testSegment}.Open(dir)
	must(t, err)
	if n, err := stable.GetUint64([]byte("CurrentTerm")); err != nil || n != 0 {
		t.Errorf("of nothing: %d %v", n, err)
	}
	must(t, stable.SetUint64([]byte("CurrentTerm"), 7))
	must(t, stable.Set([]byte("LastVoteCand"), []byte("me")))
	must(t, logs.StoreLog(testEntry(1)))
	crashed := crash(t, dir)
	must(t, closer.Close())
	_, stable, _, closer, err = WALDisk{SegmentBytes: testSegment}.Open(crashed)
	must(t, err)
	defer func() { must(t, closer.Close()) }()
	n, err := stable.GetUint64([]byte("CurrentTerm"))
	v, verr := stable.Get([]byte("LastVoteCand"))
	if n != 7 || err != nil || string(v) != "me" || verr != nil {
		t.Errorf("term %d %v, vote %q %v", n, err, v, verr)
	}
}

// TestWALMark: how far the log had reached is lowered before it ends earlier.
func TestWALMark(t *testing.T) {
	dir := filled(t, 10, true)
	l := mustWAL(t, dir)
	if l.mark != 10 {
		t.Errorf("the mark is %d", l.mark)
	}
	must(t, l.DeleteRange(8, 10)) // a conflict: then ending at 7 is right
	crashed := crash(t, dir)
	must(t, l.Close())
	wholeLog(t, crashed, 1, 7)
	wholeLog(t, dir, 1, 7)
}

func FuzzScanSegment(f *testing.F) {
	dir := f.TempDir()
	l, err := openWAL(dir)
	must(f, err)
	for i := uint64(1); i <= 25; i++ {
		must(f, l.StoreLog(testEntry(i)))
	}
	must(f, l.Close())
	files, err := filepath.Glob(filepath.Join(dir, walDir, "*.wal"))
	must(f, err)
	for _, path := range files {
		data, err := os.ReadFile(path)
		must(f, err)
		f.Add(data)
	}
	f.Add(make([]byte, 64))
	f.Add(append(make([]byte, 32), 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, data []byte) {
		tail := scanSegment(data)
		if tail.end < 0 || tail.end > len(data) || tail.damage > len(data) || tail.index > uint64(len(data)) {
			t.Fatalf("%d bytes: %+v", len(data), tail)
		}
		// What was read stays as it is when the rest goes.
		if again := scanSegment(data[:tail.end]); again.end != tail.end || again.entries != tail.entries || again.damage != 0 {
			t.Fatalf("%+v, then %+v", tail, again)
		}
	})
}

func FuzzWALRecord(f *testing.F) {
	var b bytes.Buffer
	must(f, walCodec{}.Encode(testEntry(3), &b))
	f.Add(b.Bytes())
	f.Add([]byte{})
	f.Add(binary.BigEndian.AppendUint64(nil, 0xef46db3751d8e999)) // the sum of nothing
	f.Fuzz(func(t *testing.T, raw []byte) {
		var l raft.Log
		if err := (walCodec{}).Decode(raw, &l); err != nil {
			return
		}
		var again bytes.Buffer
		must(t, walCodec{}.Encode(&l, &again))
	})
}

// syncedFiles remembers what was written to each file and synced.
type syncedFiles struct {
	*fs.FS
	synced []written
}

type written struct {
	at int64
	b  []byte
}

type syncedFile struct {
	types.WritableFile
	of      *syncedFiles
	pending []written
}

func (f *syncedFiles) OpenWriter(dir, name string) (types.WritableFile, error) {
	w, err := f.FS.OpenWriter(dir, name)
	return &syncedFile{WritableFile: w, of: f}, err
}

func (f *syncedFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	w, err := f.FS.Create(dir, name, size)
	return &syncedFile{WritableFile: w, of: f}, err
}

// has reports whether e was written and synced.
func (f *syncedFiles) has(t *testing.T, e *raft.Log) bool {
	t.Helper()
	var record bytes.Buffer
	must(t, walCodec{}.Encode(e, &record))
	return slices.ContainsFunc(f.synced, func(w written) bool { return bytes.Contains(w.b, record.Bytes()) })
}

func (f *syncedFile) WriteAt(b []byte, at int64) (int, error) {
	f.pending = append(f.pending, written{at, bytes.Clone(b)})
	return f.WritableFile.WriteAt(b, at)
}

func (f *syncedFile) Sync() error {
	f.of.synced, f.pending = append(f.of.synced, f.pending...), nil
	return f.WritableFile.Sync()
}

// TestWALNewestAppendIsSyncedAtStart: a process that was killed between writing and
// syncing, or whose sync failed, leaves an append that reads well and that a power
// cut would take.
func TestWALNewestAppendIsSyncedAtStart(t *testing.T) {
	dir := t.TempDir()
	logs, _, _, closer, err := WALDisk{SegmentBytes: testSegment}.Open(dir)
	must(t, err)
	must(t, logs.StoreLogs([]*raft.Log{testEntry(1)}))
	must(t, logs.StoreLogs([]*raft.Log{testEntry(2), testEntry(3)}))
	crashed := crash(t, dir)
	must(t, closer.Close())

	files := &syncedFiles{FS: fs.New()}
	logs, _, _, closer, err = WALDisk{Files: files, SegmentBytes: testSegment}.Open(crashed)
	must(t, err)
	defer func() { must(t, closer.Close()) }()
	found := files.has(t, testEntry(3))
	if last, err := logs.LastIndex(); err != nil || last != 3 || !found {
		t.Errorf("after a kill the log ends at %d, %v; its newest entry was synced: %v", last, err, found)
	}
}

// TestWALSyncsWhatItAnswers: an append is synced before it is answered.
func TestWALSyncsWhatItAnswers(t *testing.T) {
	files := &syncedFiles{FS: fs.New()}
	logs, _, _, closer, err := WALDisk{Files: files, SegmentBytes: testSegment}.Open(t.TempDir())
	must(t, err)
	defer func() { must(t, closer.Close()) }()
	for i := uint64(1); i <= 3; i++ {
		must(t, logs.StoreLogs([]*raft.Log{testEntry(i)}))
		if !files.has(t, testEntry(i)) {
			t.Errorf("entry %d is not synced", i)
		}
	}
}
