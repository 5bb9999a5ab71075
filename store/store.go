package store

import (
	"fmt"
	"reflect"

	"github.com/tidwall/btree"

	"github.com/baton-cluster/baton/wire"
)

// PositionBits is how many low bits of a position hold the command's place in
// its entry; the log index is above. wire.EntryCommandsMax follows from it.
const PositionBits = 12

// Position is the position of the command at place (from 0) of the entry at
// log index.
func Position(index uint64, place int) uint64 { return index<<PositionBits | uint64(place) }

// Store holds the replicated tables. It is single-threaded: the caller (package
// fsm) locks. Reads may run side by side with each other, but not with Apply or
// Snapshot.
type Store struct {
	// gen is the copy-on-write generation, raised by each Snapshot. Invariant: a
	// row with a lower gen may be shared with a snapshot and is never modified;
	// modify only what edit returned. (A write applied in place to a shared row
	// would tear a snapshot that is being streamed.)
	gen uint64

	clusterID    []byte
	byteBudget   uint64
	featureLevel uint32
	// leaseUS is how long a lease lasts that is granted now.
	leaseUS uint64
	// voterConfig is the log index of the last change of the voters, and voters
	// are their ids, rising.
	voterConfig uint64
	voters      []string
	timeUS      uint64
	// assignAfterUS is when a new cluster, made of the state of another, may assign
	// sessions; see Reborn. In log time; 0: it always could.
	assignAfterUS uint64
	// epochs is the counter behind epochs and incarnations. Invariant: it only
	// rises, and no epoch or incarnation in the tables is above it (S1).
	epochs   uint64
	index    uint64
	position uint64
	// used is the sum of what all rows and closed records are charged.
	used uint64
	// keys is the key ring, by rising generation. Immutable: each change makes a
	// new slice.
	keys []generation
	// joinTokens are by rising id. Immutable, as keys are.
	joinTokens []joinToken

	workers    *btree.BTreeG[*worker]
	sessions   *btree.BTreeG[slot]
	migrations *btree.BTreeG[*migration]
	closed     *btree.BTreeG[*closed]
	jobs       *btree.BTreeG[*job]

	indexes

	// sum is the xor of the hashes of all rows of all tables; see hash.go.
	sum uint64
	h   hasher

	// seek is the search key of gate, kept because it would be allocated anew for
	// every command. Invariant: used under Apply only; reads run side by side.
	seek row
	// scratch is where rows are packed. Under Apply only, too.
	scratch []byte
	names   names

	// wallUS, events: of the entry that is being applied.
	wallUS int64
	events []Event
}

// New makes an empty store: no cluster yet, log time 0.
func New() *Store {
	opts := btree.Options{NoLocks: true}
	return &Store{
		gen:        1,
		workers:    btree.NewBTreeGOptions(lessWorker, opts),
		sessions:   btree.NewBTreeGOptions(lessSlot, opts),
		migrations: btree.NewBTreeGOptions(lessMigration, opts),
		closed:     btree.NewBTreeGOptions(lessClosed, opts),
		jobs:       btree.NewBTreeGOptions(lessJob, opts),
		indexes:    newIndexes(),
	}
}

// EventKind says what an Event is about. The values are not persisted.
type EventKind uint8

const (
	// EventSession: a row's owner or epoch changed, it was opened, closed or
	// expired, or a migration of it began or ended. Not: attachments, writes.
	EventSession EventKind = iota + 1
	// EventWorker: a worker registered, was fenced, or changed state.
	EventWorker
	// EventMigration: a migration began, pivoted or ended.
	EventMigration
	// EventRestored: everything may have changed; a snapshot replaced the tables.
	EventRestored
	// EventCluster: the cluster got its identity.
	EventCluster
	// EventJob: a job began, changed or ended, or one of its figures did.
	EventJob
	// EventVoters: the voters changed.
	EventVoters
	// EventKeys: a generation of keys began or was dropped.
	EventKeys
)

// Event is a hint to watchers that something changed: look again. Fields that
// do not apply are empty.
type Event struct {
	Kind      EventKind
	Session   string
	Worker    string // the owner's, or the worker that changed
	Migration uint64
	Job       uint64
}

// applier applies one kind of command, and completes res, whose code is OK and
// whose position is set.
type applier func(s *Store, c *wire.Command, res *wire.Result)

// appliers is the whole command set: one named function a command. Kinds are
// log format: append, never renumber. TestAppliersComplete fails on a kind with
// no entry.
var appliers = map[reflect.Type]applier{
	kind(&wire.Command_InitCluster{}):    bind((*wire.Command).GetInitCluster, (*Store).applyInitCluster),
	kind(&wire.Command_RegisterWorker{}): bind((*wire.Command).GetRegisterWorker, (*Store).applyRegisterWorker),
	kind(&wire.Command_FenceWorker{}):    bind((*wire.Command).GetFenceWorker, (*Store).applyFenceWorker),
	kind(&wire.Command_SetWorkerState{}): bind((*wire.Command).GetSetWorkerState, (*Store).applySetWorkerState),
	kind(&wire.Command_RemoveWorker{}):   bind((*wire.Command).GetRemoveWorker, (*Store).applyRemoveWorker),
	kind(&wire.Command_Open{}):           bind((*wire.Command).GetOpen, (*Store).applyOpen),
	kind(&wire.Command_Attach{}):         bind((*wire.Command).GetAttach, (*Store).applyAttach),
	kind(&wire.Command_Detach{}):         bind((*wire.Command).GetDetach, (*Store).applyDetach),
	kind(&wire.Command_Claim{}):          bind((*wire.Command).GetClaim, (*Store).applyClaim),
	kind(&wire.Command_Write{}):          bind((*wire.Command).GetWrite, (*Store).applyWrite),
	kind(&wire.Command_Cancel{}):         bind((*wire.Command).GetCancel, (*Store).applyCancel),
	kind(&wire.Command_Ack{}):            bind((*wire.Command).GetAck, (*Store).applyAck),
	kind(&wire.Command_Close{}):          bind((*wire.Command).GetClose, (*Store).applyClose),
	kind(&wire.Command_Assign{}):         bind((*wire.Command).GetAssign, (*Store).applyAssign),
	kind(&wire.Command_Expire{}):         bind((*wire.Command).GetExpire, (*Store).applyExpire),
	kind(&wire.Command_Begin{}):          bind((*wire.Command).GetBegin, (*Store).applyBegin),
	kind(&wire.Command_Pivot{}):          bind((*wire.Command).GetPivot, (*Store).applyPivot),
	kind(&wire.Command_Abort{}):          bind((*wire.Command).GetAbort, (*Store).applyAbort),
	kind(&wire.Command_End{}):            bind((*wire.Command).GetEnd, (*Store).applyEnd),
	kind(&wire.Command_ReadMarker{}):     bind((*wire.Command).GetReadMarker, (*Store).applyReadMarker),
	kind(&wire.Command_Locate{}):         bind((*wire.Command).GetLocate, (*Store).applyLocate),
	kind(&wire.Command_Tick{}):           bind((*wire.Command).GetTick, (*Store).applyTick),
	kind(&wire.Command_StartJob{}):       bind((*wire.Command).GetStartJob, (*Store).applyStartJob),
	kind(&wire.Command_UpdateJob{}):      bind((*wire.Command).GetUpdateJob, (*Store).applyUpdateJob),
	kind(&wire.Command_EndJob{}):         bind((*wire.Command).GetEndJob, (*Store).applyEndJob),
	kind(&wire.Command_SetLease{}):       bind((*wire.Command).GetSetLease, (*Store).applySetLease),
	kind(&wire.Command_RotateKeys{}):     bind((*wire.Command).GetRotateKeys, (*Store).applyRotateKeys),

	kind(&wire.Command_MakeJoinToken{}):   bind((*wire.Command).GetMakeJoinToken, (*Store).applyMakeJoinToken),
	kind(&wire.Command_UseJoinToken{}):    bind((*wire.Command).GetUseJoinToken, (*Store).applyUseJoinToken),
	kind(&wire.Command_RevokeJoinToken{}): bind((*wire.Command).GetRevokeJoinToken, (*Store).applyRevokeJoinToken),
}

func kind(k any) reflect.Type { return reflect.TypeOf(k) }

func bind[M any](get func(*wire.Command) M, apply func(*Store, M, *wire.Result)) applier {
	return func(s *Store, c *wire.Command, res *wire.Result) { apply(s, get(c), res) }
}

// Known reports whether c is of a kind that this build can apply.
func Known(c *wire.Command) bool {
	_, ok := appliers[reflect.TypeOf(c.GetKind())]
	return ok
}

// Apply applies the entry at log index and returns one result a command, in
// order, and the events. A refused command is a result like any other and
// changes nothing. Results share byte slices with the tables: read only.
//
// It panics if index is not above the last one, if the entry holds more than
// wire.EntryCommandsMax commands, or one that is not Known: the caller must
// have halted before (S5).
func (s *Store) Apply(index uint64, e *wire.Entry) ([]*wire.Result, []Event) {
	commands := e.GetCommands()
	if index <= s.index || len(commands) > wire.EntryCommandsMax {
		panic(fmt.Sprintf("store: entry %d of %d commands after entry %d", index, len(commands), s.index))
	}
	s.index = index
	s.position = Position(index, 0)
	s.timeUS = max(s.timeUS, e.GetTimeUs())
	s.wallUS = e.GetWallUs()
	s.events = nil
	s.sweepClosed()
	s.sweepKeys()
	s.sweepJoinTokens()

	results := make([]*wire.Result, len(commands))
	for place, c := range commands {
		s.position = Position(index, place)
		res := &wire.Result{Position: s.position}
		s.applyCommand(c, res)
		results[place] = res
	}
	events := s.events
	s.events = nil
	return results, events
}

func (s *Store) applyCommand(c *wire.Command, res *wire.Result) {
	apply, ok := appliers[reflect.TypeOf(c.GetKind())]
	if !ok {
		panic(fmt.Sprintf("store: unknown command kind %T at position %d", c.GetKind(), s.position))
	}
	if c.GetGroup() != 0 {
		res.Code = wire.Code_WRONG_GROUP
		return
	}
	if len(s.clusterID) == 0 && needsCluster(c) {
		res.Code = wire.Code_NOT_INITIALISED
		return
	}
	apply(s, c, res)
}

// needsCluster reports whether c makes sense only once the cluster has its
// identity and budget.
func needsCluster(c *wire.Command) bool {
	switch c.GetKind().(type) {
	case *wire.Command_InitCluster, *wire.Command_Tick:
		return false
	}
	return true
}

func (s *Store) emit(e Event) { s.events = append(s.events, e) }

// nextEpoch draws from the one counter behind epochs and incarnations (S1).
func (s *Store) nextEpoch() uint64 {
	s.epochs++
	return s.epochs
}

func (s *Store) applyInitCluster(c *wire.InitCluster, res *wire.Result) {
	switch {
	case len(s.clusterID) != 0:
		res.Code = wire.Code_ALREADY_INITIALISED
		return
	case len(c.GetClusterId()) == 0 || len(c.GetClusterId()) > labelBytesMax:
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	s.clusterID = c.GetClusterId()
	s.byteBudget = c.GetByteBudget()
	if s.byteBudget == 0 {
		s.byteBudget = wire.ByteBudgetDefault
	}
	s.featureLevel = c.GetFeatureLevel()
	s.leaseUS = leaseOr(c.GetLeaseUs())
	s.emit(Event{Kind: EventCluster})
}

// applyTick changes nothing: its entry brought the time.
func (s *Store) applyTick(*wire.Tick, *wire.Result) {}
