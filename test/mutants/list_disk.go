package mutants

func init() { All = append(All, disk...) }

// disk takes out what keeps the log whole on disks that lose, tear and rot.
var disk = []Mutant{
	{
		Name: "unsynced", Fault: "the log is not synced before it is answered", Package: "cluster", Tests: "TestWALSyncsWhatItAnswers", Storm: "power-cut,power-cut-in-sync",
		Edits: []Edit{
			{"cluster/waldisk.go", "segment.NewFiler(path, deferred)", "segment.NewFiler(path, unsyncedFiles{deferred})"},
			{"cluster/waldisk.go", "// walLog is the library's log, with what it leaves out.", `type unsyncedFiles struct{ types.VFS }

func (f unsyncedFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	w, err := f.VFS.Create(dir, name, size)
	return unsyncedFile{w}, err
}

func (f unsyncedFiles) OpenWriter(dir, name string) (types.WritableFile, error) {
	w, err := f.VFS.OpenWriter(dir, name)
	return unsyncedFile{w}, err
}

type unsyncedFile struct{ types.WritableFile }

func (unsyncedFile) Sync() error { return nil }

// walLog is the library's log, with what it leaves out.`},
		},
	},
	{
		Name: "early-ack", Fault: "an entry is committed before the leader's own copy is synced", Package: "test/sim", Tests: "TestAnswersOutliveTheLeadersDisk",
		Edits: []Edit{{"cluster/parallel.go", "if p == nil || index < p.first {", "if p == nil || index < math.MaxUint64 {"}},
	},
	{
		Name: "early-alone", Fault: "a server that commits alone does so before the sync", Package: "cluster", Tests: "TestLeaderSyncsWhileItSends",
		Edits: []Edit{{"cluster/parallel.go", "r.GetConfiguration().Configuration())) > 1", "r.GetConfiguration().Configuration())) > 0"}},
	},
	{
		Name: "early-config", Fault: "a change of the servers is sent before it is synced", Package: "cluster", Tests: "TestWhatIsSentEarly",
		Edits: []Edit{{"cluster/parallel.go", "!onlyCommands(logs) || ", ""}},
	},
	{
		Name: "two-unsynced", Fault: "an append follows one that is not synced", Package: "cluster", Tests: "TestSyncGoesBeforeTheNextWrite",
		Edits: []Edit{{"cluster/parallel.go", "if err := l.settle(nil); err != nil {", "if err := error(nil); err != nil {"}},
	},
	{
		Name: "term-before-sync", Fault: "a new term begins before the log of the old one is synced", Package: "cluster", Tests: "TestSyncGoesBeforeTheNextWrite",
		Edits: []Edit{{"cluster/guard.go", "	err := s.log.settle(nil)\n", "	err := error(nil)\n"}},
	},
	{
		Name: "full-unsynced", Fault: "a segment of the log counts as full before its last append is synced", Package: "cluster", Tests: "TestWALSyncsLater",
		Edits: []Edit{{"cluster/waldisk.go", "if err := m.files.sync(); err != nil {", "if err := error(nil); err != nil {"}},
	},
	{
		Name: "marks-unsynced", Fault: "a log is said to reach as far as an append whose sync failed", Package: "cluster", Tests: "TestWALFailedSyncIsNoMark",
		Edits: []Edit{{"cluster/waldisk.go", "if serr := l.files.sync(); err == nil {", "if serr := error(nil); err == nil {"}},
	},
	{
		Name: "newest-unsynced", Fault: "what a killed process had not synced counts after its restart", Package: "cluster", Tests: "TestWALNewestAppendIsSyncedAtStart", Storm: "crash,power-cut-in-sync",
		Edits: []Edit{{"cluster/walcheck.go", "if err := writeDurably(files, path, name, int64(tail.last), data[tail.last:tail.end]); err != nil {", "if err != nil {"}},
	},
	{
		Name: "torn-append", Fault: "an append that a crash tore is taken for whole", Package: "cluster", Tests: "TestWALTornAppend", Storm: "power-cut-in-sync",
		Edits: []Edit{{"cluster/walcheck.go", "return a, binary.LittleEndian.Uint32(data[at+4:]) == crc32.Checksum(data[sumFrom:at], walCRC)", "return a, true"}},
	},
	{
		Name: "log-cut-by-rot", Fault: "a log ends where it has rotted, though synced entries follow", Package: "cluster", Tests: "TestWALFlippedBits", Storm: "bit-flip",
		Edits: []Edit{{"cluster/walcheck.go", "		t.damage = next\n", ""}},
	},
	{
		Name: "rotten-commit", Fault: "a log ends where a commit has rotted, though a synced append follows", Package: "cluster", Tests: "TestWALFlippedBits",
		Edits: []Edit{{"cluster/walcheck.go", "		if t.isDamage(data, at) {\n			return t\n		}\n		next, ok := nextFrame(data, at)", "		next, ok := nextFrame(data, at)"}},
	},
	{
		Name: "record-unchecked", Fault: "a record that has rotted is read", Package: "cluster", Tests: "TestWALFlippedBits", Storm: "bit-flip",
		Edits: []Edit{{"cluster/waldisk.go", "if xxhash.Sum64(body) != binary.BigEndian.Uint64(sum) {", "if len(sum) == 0 {"}},
	},
	{
		Name: "segment-full-for-ever", Fault: "a segment that is full, and not listed so, is written to", Package: "cluster", Tests: "TestWALFullSegmentAtCrash", Storm: "crash-next-segment",
		Edits: []Edit{{"cluster/walcheck.go", "return end, meta.CommitState(rotated(state, end, tail.index))", "return end, nil"}},
	},
	{
		Name: "small-is-damaged", Fault: "a log that found no room for a segment is taken for damaged", Package: "cluster", Tests: "TestWALFullDisk",
		Edits: []Edit{{"cluster/walcheck.go", "return 0, files.Delete(path, name)", "_ = files.Delete"}},
	},
	{
		Name: "unfinished-stays", Fault: "a snapshot for which there was no room keeps the room that it took", Package: "cluster", Tests: "TestUnfinishedSnapshotsAreRemoved",
		Edits: []Edit{{"cluster/snapshots.go", "	return s.removeLocked()\n}\n\ntype tidySink", "	return nil\n}\n\ntype tidySink"}},
	},
}
