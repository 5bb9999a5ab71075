package store

import (
	"errors"
	"fmt"
	"io"

	"github.com/baton-cluster/baton/wire"
)

// errLoad marks every fault of a snapshot's content.
var errLoad = errors.New("snapshot content")

func badf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errLoad, fmt.Sprintf(format, args...))
}

// Load rebuilds a store from the records of a Snapshot; next ends with io.EOF.
// The store is complete or not returned at all: order, structure, the number of
// records and the state hash are verified.
func Load(next func() (*wire.SnapshotRecord, error)) (*Store, error) {
	l := loader{s: New()}
	if err := l.run(next); err != nil {
		return nil, err
	}
	return l.s, nil
}

type loader struct {
	s *Store

	records uint64
	// section and key are of the last record: records come by rising (section,
	// key), so that none comes twice.
	section int
	key     string
	id      uint64

	expiry []deadline // of the sessions, by id

	used uint64
	sum  uint64
	end  *wire.SnapshotEnd
}

const (
	sectionCluster = iota + 1
	sectionWorkers
	sectionSessions
	sectionMigrations
	sectionClosed
	sectionJobs
)

func (l *loader) run(next func() (*wire.SnapshotRecord, error)) error {
	for {
		rec, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if l.end != nil {
			return badf("a record after the end record")
		}
		if err := l.record(rec); err != nil {
			return fmt.Errorf("record %d: %w", l.records, err)
		}
		l.records++
	}
	l.s.expireAll(l.expiry)
	return l.verify()
}

func (l *loader) verify() error {
	switch {
	case l.end == nil:
		return badf("it ends without its end record, after %d records: it was cut off", l.records)
	case l.end.GetRecords() != l.records-1:
		return badf("%d records, the end record says %d", l.records-1, l.end.GetRecords())
	case l.section == 0:
		return badf("no cluster record")
	case l.used != l.s.used:
		return badf("rows are charged %d bytes, the cluster record says %d", l.used, l.s.used)
	}
	hash := l.sum ^ l.s.clusterHash(&l.s.h)
	if hash != l.end.GetStateHash() {
		return badf("state hash %016x, the end record says %016x", hash, l.end.GetStateHash())
	}
	return nil
}

// step checks the order of records.
func (l *loader) step(section int, key string, id uint64) error {
	if section < l.section || (section == l.section && (key < l.key || (key == l.key && id <= l.id))) {
		return badf("records out of order or repeated")
	}
	if section != sectionCluster && l.section == 0 {
		return badf("the first record is not the cluster's")
	}
	l.section, l.key, l.id = section, key, id
	return nil
}

func (l *loader) record(rec *wire.SnapshotRecord) error {
	switch k := rec.GetKind().(type) {
	case *wire.SnapshotRecord_Cluster:
		return l.cluster(k.Cluster)
	case *wire.SnapshotRecord_Worker:
		return l.worker(k.Worker)
	case *wire.SnapshotRecord_Session:
		return l.session(k.Session)
	case *wire.SnapshotRecord_Migration:
		return l.migration(k.Migration)
	case *wire.SnapshotRecord_Closed:
		return l.closed(k.Closed)
	case *wire.SnapshotRecord_Job:
		return l.job(k.Job)
	case *wire.SnapshotRecord_End:
		l.end = k.End
		return nil
	}
	return badf("unknown kind of record: written by a newer version?")
}

func (l *loader) cluster(p *wire.ClusterRow) error {
	if err := l.step(sectionCluster, "", 1); err != nil {
		return err
	}
	s := l.s
	s.clusterID, s.byteBudget, s.featureLevel = p.GetClusterId(), p.GetByteBudget(), p.GetFeatureLevel()
	s.timeUS, s.epochs, s.position, s.used = p.GetTimeUs(), p.GetEpochs(), p.GetPosition(), p.GetBytesUsed()
	s.index = s.position >> PositionBits
	s.voterConfig, s.leaseUS, s.assignAfterUS = p.GetVoterConfig(), p.GetLeaseUs(), p.GetAssignAfterUs()
	for _, v := range p.GetVoters() {
		s.voters = append(s.voters, v.GetId())
	}
	var ok bool
	if s.keys, ok = ringOf(p.GetKeys()); !ok {
		return badf("the key ring is inconsistent")
	}
	if s.joinTokens, ok = joinTokensOf(p.GetJoinTokens()); !ok {
		return badf("the join tokens are inconsistent")
	}
	if s.featureLevel > wire.FeatureLevel {
		return badf("feature level %d is newer than this build's %d: upgrade this node", s.featureLevel, wire.FeatureLevel)
	}
	return nil
}

func (l *loader) worker(p *wire.WorkerRow) error {
	if err := l.step(sectionWorkers, p.GetId(), 1); err != nil {
		return err
	}
	w := workerOf(p)
	w.hash = l.s.h.worker(w)
	l.sum ^= w.hash
	if w.incarnation > l.s.epochs {
		return badf("worker %q: incarnation above the epoch counter", w.id)
	}
	l.s.setWorker(w)
	return nil
}

func (l *loader) migration(p *wire.Migration) error {
	if err := l.step(sectionMigrations, "", p.GetId()); err != nil {
		return err
	}
	m := migrationOf(p)
	m.hash = l.s.h.migration(m)
	l.sum ^= m.hash
	if _, twice := l.s.nonces[string(m.nonce)]; twice {
		return badf("migration %d: its nonce is another's", m.id)
	}
	l.s.setMigration(m)
	return nil
}

func (l *loader) job(p *wire.Job) error {
	if err := l.step(sectionJobs, "", p.GetId()); err != nil {
		return err
	}
	j, ok := l.s.h.jobOf(p)
	if !ok {
		return badf("job %d: its plan or its pauses are out of order", j.id)
	}
	j.hash = l.s.h.job(j)
	l.sum ^= j.hash
	if _, twice := l.s.jobNonces[string(j.nonce)]; twice {
		return badf("job %d: its nonce is another's", j.id)
	}
	l.s.setJob(j)
	if w := l.s.worker(j.worker); j.open() && j.kind == wire.JobKind_JOB_KIND_DRAIN && (w == nil || w.job != j.id) {
		return badf("job %d: its worker does not know of it", j.id)
	}
	l.s.events = nil // loading is no news
	return nil
}

func (l *loader) closed(p *wire.Closed) error {
	// The NUL, which no id contains, keeps (session, nonce) in the table's order.
	if err := l.step(sectionClosed, p.GetSession()+"\x00"+string(p.GetNonce()), 1); err != nil {
		return err
	}
	c := closedOf(p)
	l.sum ^= l.s.h.closed(c)
	l.used += c.charge()
	used := l.s.used // from the cluster record; remember would count twice
	l.s.remember(c)
	l.s.used = used
	return nil
}

func (l *loader) session(p *wire.SessionRow) error {
	if err := l.step(sectionSessions, p.GetId(), 1); err != nil {
		return err
	}
	r, err := loadRow(&l.s.h, p)
	if err != nil {
		return fmt.Errorf("session %q: %w", p.GetId(), err)
	}
	if r.epoch > l.s.epochs {
		return badf("session %q: epoch above the epoch counter", r.id)
	}
	l.sum ^= l.s.h.row(r)
	l.used += r.bytes
	used := l.s.used
	id := l.s.place(r)
	l.s.used = used
	if r.expiresUS != 0 {
		l.expiry = append(l.expiry, deadline{r.expiresUS, id})
	}
	return nil
}

// loadRow rebuilds a row through the same methods that commands use, so that
// sizes and hashes are recomputed, and checks the invariants that the code
// relies on.
func loadRow(h *hasher, p *wire.SessionRow) (*row, error) {
	if code := checkID(p.GetId()); code != wire.Code_OK {
		return nil, badf("bad id")
	}
	r := newRow(p.GetId())
	r.charge(len(r.id))
	r.secretHash, r.ttlUS, r.shared = p.GetSecretHash(), p.GetTtlUs(), p.GetShared()
	r.nonce, r.openDeadlineUS = p.GetOpenNonce(), p.GetOpenDeadlineUs()
	r.owner, r.epoch = ownerOf(p.GetOwner()), p.GetEpoch()
	r.attachHigh, r.expiresUS = p.GetAttachHigh(), p.GetExpiresUs()
	r.change, r.migration = p.GetChange(), p.GetMigration()
	for i, c := range p.GetState() {
		if c.GetDelete() || (i > 0 && c.GetKey() <= p.GetState()[i-1].GetKey()) {
			return nil, badf("state out of order")
		}
		r.state = append(r.state, r.newEntry(h, c))
	}
	for i, w := range p.GetClients() {
		if i > 0 && string(w.GetClient()) <= string(p.GetClients()[i-1].GetClient()) {
			return nil, badf("client windows out of order")
		}
		if err := r.loadWindow(h, w); err != nil {
			return nil, err
		}
	}
	for _, a := range p.GetAttachments() {
		client := string(a.GetClient())
		n := len(r.attachments)
		if r.window(client) == nil || r.isAttached(client) || a.GetNumber() > r.attachHigh ||
			(n > 0 && (!r.shared || a.GetNumber() <= r.attachments[n-1].number)) {
			return nil, badf("attachments are inconsistent")
		}
		r.attachments = append(r.attachments, attachment{a.GetNumber(), client})
	}
	if r.attached() == (r.expiresUS != 0) {
		return nil, badf("attachments and expiry disagree")
	}
	for i, q := range p.GetOutbox() {
		if q.GetSeq() >= p.GetPushNext() || (i > 0 && q.GetSeq() <= p.GetOutbox()[i-1].GetSeq()) {
			return nil, badf("outbox out of order")
		}
		r.appendPush(h, q.GetSeq(), q.GetPayload())
	}
	r.pushNext = p.GetPushNext()
	if r.pushNext == 0 || len(p.GetHistory()) > wire.HistoryMax {
		return nil, badf("push counter or history is inconsistent")
	}
	for _, c := range p.GetHistory() {
		r.addHistory(h, ownerChangeOf(c))
	}
	if r.bytes != p.GetBytes() {
		return nil, badf("it holds %d bytes, its row says %d", r.bytes, p.GetBytes())
	}
	return r, nil
}

func (r *row) loadWindow(h *hasher, p *wire.ClientWindow) error {
	w := window{
		client: string(p.GetClient()), last: p.GetLast(), ack: p.GetAck(), pushAck: p.GetPushAck(), attached: p.GetAttached(),
	}
	added := r.addWindow(h, w)
	var before uint64
	for _, c := range p.GetReplies() {
		q := c.GetReply()
		if q.GetSeq() <= before || q.GetSeq() > w.last || q.GetSeq() < w.ack {
			return badf("cached replies out of order")
		}
		before = q.GetSeq()
		r.addReply(h, added, cachedReply{
			seq: q.GetSeq(), code: q.GetCode(), message: q.GetMessage(), payload: q.GetPayload(), digest: c.GetDigest(),
		})
	}
	return nil
}
