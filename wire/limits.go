package wire

import (
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits. Those that the state machine enforces are part of the format: all
// replicas must agree, so they change only with the feature level.
const (
	// SessionIDBytesMax: an id is a label for people, not a payload.
	SessionIDBytesMax = 128
	// KeyBytesMax bounds a key of a session's state.
	KeyBytesMax = 1024
	// StateBytesMax is the size of one session's keys and values. A row of this
	// size must fit a frame and an activation comfortably.
	StateBytesMax = 1 << 20
	// EntryOverheadBytes is charged for each key besides its bytes, so that
	// empty values are not free.
	EntryOverheadBytes = 64
	// SessionBytesFixed is charged at Open: attachment, history and one
	// migration are paid beforehand, so that control commands are never refused
	// for space (S9).
	SessionBytesFixed = 2048
	// FrameBytesMax bounds a frame on the user plane.
	FrameBytesMax = 1 << 20
	// ValueBytesMax leaves room in a frame for everything around a value.
	ValueBytesMax = FrameBytesMax - 16<<10
	// PeerFrameBytesMax bounds a frame on the management plane: a live snapshot
	// (8 MiB), its row and its envelope.
	PeerFrameBytesMax = 16 << 20

	// RepliesMax and ReplyBytesMax bound the cached replies of one session.
	RepliesMax    = 64
	ReplyBytesMax = 256 << 10
	// ClientWindowsMax bounds the dedup windows of one session. Beyond it the
	// one that attached longest ago, and is not attached, is dropped; its
	// instance is told CLIENT_GONE.
	ClientWindowsMax = 64
	// OutboxMax and OutboxBytesMax bound the unreceived durable pushes.
	OutboxMax      = 256
	OutboxBytesMax = 1 << 20
	// HistoryMax bounds the remembered ownership changes of a session.
	HistoryMax = 32
	// EndedMigrationsMax bounds the remembered ended migrations.
	EndedMigrationsMax = 4096
	// JobsOpenMax bounds the drains and rebalances under way, EndedJobsMax the
	// remembered ended ones.
	JobsOpenMax  = 64
	EndedJobsMax = 256
	// JobMovesMax, JobPlanBytesMax and JobTargetsMax bound a rebalance's plan: it
	// travels in one command and is read back in one snapshot record. A larger
	// rebalance is done in several.
	JobMovesMax     = 1 << 14
	JobPlanBytesMax = 1 << 20
	JobTargetsMax   = 1 << 10
	// PriorityDefault is that of a migration or job without one; 1 is the first
	// to be served, PriorityMax the last.
	PriorityDefault = 3
	PriorityMax     = 5

	// EntryCommandsMax: the place in an entry has 12 bits in a position.
	EntryCommandsMax = 1 << 12
	// EntryBytesMax bounds one log entry, so that applying it is bounded in
	// time (S6). A single larger command travels alone.
	EntryBytesMax = 256 << 10

	// LiveBytesMax bounds the application's live state in a migration.
	LiveBytesMax = 8 << 20

	// KeyGenerationsMax bounds the key ring: the newest of each kind, and what
	// they replaced. Beyond it the oldest of those is dropped early.
	KeyGenerationsMax = 8
	// RootBytes is the size of a generation's root key; WrappedRootBytes that of
	// its wrapping: nonce, ciphertext and tag.
	RootBytes        = 32
	WrappedRootBytes = 12 + RootBytes + 16

	// SecretBytes and IDBytes are the sizes of secrets and of random ids.
	SecretBytes = 32
	IDBytes     = 16
)

// TTL bounds, and the default.
const (
	TTLMin     = time.Second
	TTLMax     = 90 * 24 * time.Hour
	TTLDefault = time.Hour
)

// How long a lease may last, in microseconds. LeaseUSMax is compiled in and must
// never be lowered: a server that restarts waits for it, because it does not
// know what it promised. Below LeaseUSMin a busy CPU costs leases.
const (
	LeaseUSMin     = 200_000
	LeaseUSMax     = 5_000_000
	LeaseUSDefault = 1_000_000
)

// KeyRetention is how long (in log time) a replaced generation of keys still
// opens: as long as crypto/tls takes a session ticket at all. What is sealed for
// a migration, and an address token, is younger.
const KeyRetention = 7 * 24 * time.Hour

// KeyKindsAll is the set of all kinds of keys.
const KeyKindsAll = uint32(KeyKind_KEY_KIND_TICKET | KeyKind_KEY_KIND_ADDRESS | KeyKind_KEY_KIND_SEAL)

// Limits of join tokens. JoinTokensMax bounds those on record: an operator makes
// one for each node. JoinTokenLifeUSMax is a month, in log time; JoinTokenMemoryUS
// is how long after its end a token is remembered, to say what became of it.
const (
	JoinTokensMax      = 256
	JoinTokenLifeUSMax = 31 * 24 * 3600 * 1_000_000
	JoinTokenMemoryUS  = 24 * 3600 * 1_000_000
	// HashBytes is the size of a SHA-256.
	HashBytes = 32
)

// ByteBudgetDefault bounds what all sessions of a cluster may hold together.
const ByteBudgetDefault = 4 << 30

// CheckSessionID reports why id cannot name a session: it must be 1 to
// SessionIDBytesMax bytes of printable UTF-8.
func CheckSessionID(id string) error {
	switch {
	case id == "":
		return Errorf(Code_BAD_SESSION_ID, "a session id must not be empty")
	case len(id) > SessionIDBytesMax:
		return Errorf(Code_BAD_SESSION_ID, "a session id has at most %d bytes, this one %d", SessionIDBytesMax, len(id))
	case !utf8.ValidString(id):
		return Errorf(Code_BAD_SESSION_ID, "a session id must be valid UTF-8")
	}
	for _, r := range id {
		if !unicode.IsPrint(r) {
			return Errorf(Code_BAD_SESSION_ID, "a session id must be printable; this one has %U", r)
		}
	}
	return nil
}

// Limits of byte streams, beside those of package bulk.
const (
	// StreamsPerSessionMax bounds a session's byte streams, so what a move has to
	// carry of them.
	StreamsPerSessionMax = 16
	// StreamTokenBytes is the size of what shows that a byte stream is an
	// attachment's.
	StreamTokenBytes = 16
	// StreamArgumentBytesMax bounds what a byte stream is opened with, and
	// StreamCookieBytesMax what a handler leaves for its successor: both travel
	// with each move. More belongs into the stream, or into the session's state.
	StreamArgumentBytesMax = 4 << 10
	StreamCookieBytesMax   = 4 << 10
	// MethodBytesMax bounds a method's name.
	MethodBytesMax = 256
)

// StreamCommitMethod is what a client library calls on a StreamCommit. No
// application may register it.
const StreamCommitMethod = "baton.stream.commit"
