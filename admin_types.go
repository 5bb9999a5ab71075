package baton

import "time"

// The admin API's answers. Their JSON is what the command line prints with
// --json: names are stable, durations are integer microseconds, sizes bytes.

// Status is one node's view of the cluster, completed by asking the others.
type Status struct {
	ClusterID        string       `json:"cluster_id"`
	Leader           string       `json:"leader"` // name, empty while there is none
	LeaderAddr       string       `json:"leader_addr"`
	Term             uint64       `json:"term"`
	AppliedIndex     uint64       `json:"applied_index"`
	FeatureLevel     uint32       `json:"feature_level"`
	Epoch            uint64       `json:"epoch"` // the highest that was given out
	Healthy          bool         `json:"healthy"`
	Quorum           int          `json:"quorum"`
	FailureTolerance int          `json:"failure_tolerance"`
	Sessions         SessionTotal `json:"sessions"`
	ByteBudget       ByteBudget   `json:"byte_budget"`
	Nodes            []NodeStatus `json:"nodes"`
	// Detection counts what nodes noticed while they led, since their start.
	Detection DetectionCounts `json:"detection"`
}

// DetectionCounts: suspicions that turned out to be unfounded, and fences.
type DetectionCounts struct {
	FalseAlarms uint64 `json:"false_alarms"`
	Fences      uint64 `json:"fences"`
}

// SessionTotal counts sessions.
type SessionTotal struct {
	Total     int `json:"total"`
	Attached  int `json:"attached"`
	Migrating int `json:"migrating"`
}

// ByteBudget is what all sessions may hold together, and what they do, in bytes.
type ByteBudget struct {
	Used  uint64 `json:"used"`
	Limit uint64 `json:"limit"`
}

// Endpoint is where a node listens.
type Endpoint struct {
	Host     string `json:"host"`
	UserPort int    `json:"user_port"`
	MgmtPort int    `json:"mgmt_port"`
}

// NodeStatus is one node in Status. Figures that only the node itself knows
// (FsyncP99US, LogWrites, Batch, Conns) are zero where it could not be asked.
type NodeStatus struct {
	Name        string   `json:"name"`
	ID          string   `json:"id"`
	Incarnation uint64   `json:"incarnation"`
	Roles       []string `json:"roles"` // server, worker
	Voter       bool     `json:"voter"`
	State       string   `json:"state"`               // active, draining, suspect, fenced, joining
	Suspicion   string   `json:"suspicion,omitempty"` // why suspect
	// LeaseLeftUS is how long the node may still serve reads on its lease; 0: it
	// has none just now, and confirms every read.
	LeaseLeftUS  int64      `json:"lease_left_us"`
	Reachable    bool       `json:"reachable"`
	Faults       []Fault    `json:"faults"` // why it cannot do its part, though it answers
	Endpoint     Endpoint   `json:"endpoint"`
	Sessions     int        `json:"sessions"`
	Attached     int        `json:"attached"`
	AppliedIndex uint64     `json:"applied_index"`
	FsyncP99US   int64      `json:"fsync_p99_us"`
	LogWrites    uint64     `json:"log_writes"` // to raft's log, each synced, since the node's start
	Version      string     `json:"version"`
	Batch        Batch      `json:"batch"`
	Conns        ConnCounts `json:"conns"`
	// CertificateEnd is when the certificate that the node uses ends; zero: it did
	// not answer.
	CertificateEnd time.Time `json:"certificate_end,omitzero"`
}

// ConnCounts are a node's connections from clients: those open now, and since its
// start those that completed their handshake (with a certificate, with a ticket,
// with 0-RTT), those that a limit turned away, and those that QUIC did because too
// many waited to be accepted. A client that is turned away comes again by itself.
type ConnCounts struct {
	Open      int    `json:"open"`
	Full      uint64 `json:"full"`
	Resumed   uint64 `json:"resumed"`
	ZeroRTT   uint64 `json:"zero_rtt"`
	Refused   uint64 `json:"refused"`
	Overflown uint64 `json:"overflown"`
	// WaitingMost handshakes have waited for a processor at once, of WaitingMax that
	// may; SpreadUS is over how long the node's clients would come to the others if it
	// died now, in microseconds.
	WaitingMost int   `json:"waiting_most"`
	WaitingMax  int   `json:"waiting_max"`
	SpreadUS    int64 `json:"spread_us"`
	// Standbys are the clients that stand by here now, should the owner of their
	// session be lost.
	Standbys int `json:"standbys"`
}

// Batch tells how many commands travelled in one log entry since the node's
// start, as far as it led.
type Batch struct {
	Entries  uint64 `json:"entries"`
	Commands uint64 `json:"commands"`
	// Histogram counts entries by how many commands they held.
	Histogram []BatchBucket `json:"histogram"`
}

// BatchBucket counts the entries of at most Max commands, and of more than the
// bucket before.
type BatchBucket struct {
	Max     uint64 `json:"max"`
	Entries uint64 `json:"entries"`
}

// Member is gossip's view of a node beside Raft's.
type Member struct {
	ID            string   `json:"id"`
	Name          string   `json:"name"`
	Incarnation   uint64   `json:"incarnation"`
	Zone          string   `json:"zone"`
	Voter         bool     `json:"voter"`
	Gossip        string   `json:"gossip"` // alive, suspect, dead, left, unknown
	State         string   `json:"state"`
	Endpoint      Endpoint `json:"endpoint"`
	LastContactUS int64    `json:"last_contact_us"`
	Version       string   `json:"version"`
}

// SessionInfo is what `session show` and `session list` tell.
type SessionInfo struct {
	ID          string `json:"id"`
	Owner       string `json:"owner"` // node name, empty: none that is valid
	Incarnation uint64 `json:"incarnation"`
	Epoch       uint64 `json:"epoch"`
	Attached    int    `json:"attached"`
	TTLS        int64  `json:"ttl_s"`
	ExpiresInS  int64  `json:"expires_in_s"` // -1 while attached
	Bytes       uint64 `json:"bytes"`
	NextSeq     uint64 `json:"next_seq"`  // of the client instance attached last
	AckedSeq    uint64 `json:"acked_seq"` // likewise
	Migration   uint64 `json:"migration"` // 0: none
	StateHash   string `json:"state_hash,omitempty"`
}

// Explanation is a session's whole known ownership history, oldest first.
type Explanation struct {
	ID      string        `json:"id"`
	Changes []OwnerChange `json:"changes"`
}

// OwnerChange is one change of owner.
type OwnerChange struct {
	Epoch       uint64    `json:"epoch"`
	Owner       string    `json:"owner"`
	Incarnation uint64    `json:"incarnation"`
	From        string    `json:"from"`
	Index       uint64    `json:"index"`
	At          time.Time `json:"at"`
	Reason      string    `json:"reason"`
	By          string    `json:"by"`
	Migration   uint64    `json:"migration"`
	PauseUS     uint64    `json:"pause_us"`
	// Of the migration's record, as long as that is remembered.
	ConfirmedBy string            `json:"confirmed_by,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// MigrationInfo is a migration, under way or ended.
type MigrationInfo struct {
	Migration uint64 `json:"migration"`
	Session   string `json:"session"`
	State     string `json:"state"`
	From      string `json:"from"`
	To        string `json:"to"`
	Epoch     uint64 `json:"epoch"` // after the pivot, else the source's
	Reason    string `json:"reason"`
	By        string `json:"by"`
	Why       string `json:"why,omitempty"`  // of an abort
	Code      string `json:"code,omitempty"` // of a failure, where several moves are told of at once
	PauseUS   uint64 `json:"pause_us"`
	// Parts are known of migrations that ended under the present leader, as the
	// answer to Migrate.
	Parts *PauseParts `json:"parts,omitempty"`
	// Connections are those that the clients had at the source; likewise known.
	Connections []MovedConnection `json:"connections,omitempty"`
	// Steps are known while it is under way, and in the answer to Migrate.
	Steps []MigrationStep `json:"steps"`
	// Request names a move that waits for an operator's confirmation, which it does
	// for ExpiresInUS more. It has no Migration yet.
	Request     uint64            `json:"request,omitempty"`
	ExpiresInUS int64             `json:"expires_in_us,omitempty"`
	ConfirmedBy string            `json:"confirmed_by,omitempty"` // the operator who let it begin
	Priority    uint32            `json:"priority,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"` // the requester's
}

// PauseParts are what a migration's pause consists of, as the nodes saw it.
type PauseParts struct {
	FreezeUS   uint64 `json:"freeze_us"`   // what ran was settled, live state given up
	TransferUS uint64 `json:"transfer_us"` // seal, call to the target, answer
	CommitUS   uint64 `json:"commit_us"`   // the pivot in the log
}

// MovedConnection is a connection that served a session where it was moved from.
// Identity is who the far end's certificate says it is: a node that relays; a
// client has none.
type MovedConnection struct {
	Client        string `json:"client"` // instance id
	Identity      string `json:"identity"`
	ALPN          string `json:"alpn"`
	TLS           string `json:"tls"`
	CipherSuite   string `json:"cipher_suite"`
	RTTUS         uint64 `json:"rtt_us"` // smoothed
	BytesSent     uint64 `json:"bytes_sent"`
	BytesReceived uint64 `json:"bytes_received"`
	PacketsLost   uint64 `json:"packets_lost"`
}

// MigrationStep is one state that a migration went through.
type MigrationStep struct {
	State  string    `json:"state"`
	At     time.Time `json:"at"`
	TookUS int64     `json:"took_us"`
}

// Quantiles of measured durations, in microseconds.
type Quantiles struct {
	P50 int64 `json:"p50"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

// DrainReport is what a drain or a rebalance ends with.
type DrainReport struct {
	Node   string `json:"node,omitempty"` // of a drain
	Job    uint64 `json:"job"`
	State  string `json:"state"`            // running, paused, done, cancelled, failed
	Code   string `json:"code,omitempty"`   // why it failed
	Reason string `json:"reason,omitempty"` // why it is paused or ended
	// Waiting is why nothing is begun just now.
	Waiting string `json:"waiting,omitempty"`
	Moved   int    `json:"moved"`
	// Failed moves that were not made good by a later one.
	Failed int `json:"failed"`
	// Lost sessions were there before and are nowhere now, though nobody closed
	// them and they did not expire.
	Lost int `json:"lost"`
	// Duplicated sessions are active on more than one node under one epoch. Unreachable
	// nodes could not be asked.
	Duplicated  int       `json:"duplicated"`
	Unreachable []string  `json:"unreachable,omitempty"`
	PauseUS     Quantiles `json:"pause_us"`
	TookUS      int64     `json:"took_us"`
	Remaining   int       `json:"remaining"`
}

// Ended reports whether the job is over, well or not.
func (r DrainReport) Ended() bool {
	return r.State == "done" || r.State == "cancelled" || r.State == "failed"
}

// JobInfo is a drain or a rebalance.
type JobInfo struct {
	Job         uint64    `json:"job"`
	Kind        string    `json:"kind"`  // drain, rebalance
	State       string    `json:"state"` // running, paused, done, cancelled, failed
	Node        string    `json:"node,omitempty"`
	Priority    uint32    `json:"priority"`
	Placement   string    `json:"placement"`
	MaxPauseUS  int64     `json:"max_pause_us"` // 0: unbounded, as are the next two
	Rate        uint32    `json:"rate"`
	Concurrency uint32    `json:"concurrency"`
	By          string    `json:"by"`
	At          time.Time `json:"at"`
	Planned     uint64    `json:"planned"`
	Moved       uint64    `json:"moved"`
	Aborted     uint64    `json:"aborted"` // migrations rolled back; most were tried again
	Failed      uint64    `json:"failed"`  // moves given up
	Remaining   int       `json:"remaining"`
	Active      int       `json:"active"` // moves under way
	Window      int       `json:"window"` // how many the pause budget allows just now
	Waiting     string    `json:"waiting,omitempty"`
	Trouble     string    `json:"trouble,omitempty"` // of the last move that failed
	Code        string    `json:"code,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	PauseUS     Quantiles `json:"pause_us"`
	TookUS      int64     `json:"took_us"`
	// ConfirmInUS is how long it still waits for an operator's confirmation;
	// ConfirmedBy is who gave it.
	ConfirmInUS int64  `json:"confirm_in_us,omitempty"`
	ConfirmedBy string `json:"confirmed_by,omitempty"`
}

// RebalancePlan is what a rebalance does, or in a dry run would do: its moves,
// and the sessions of each node before and after.
type RebalancePlan struct {
	DryRun  bool   `json:"dry_run"`
	Job     uint64 `json:"job"` // 0: none was started
	Planned int    `json:"planned"`
	Left    int    `json:"left"` // moves beyond the limit
	// Moves, Before and After are empty where the answer to an earlier try was lost.
	Moves  []PlannedMove  `json:"moves"`
	Before map[string]int `json:"before"`
	After  map[string]int `json:"after"`
}

// PlannedMove is one move of a plan.
type PlannedMove struct {
	Session string `json:"session"`
	From    string `json:"from"`
	To      string `json:"to"`
}

// Verdict is what `verify` finds.
type Verdict struct {
	OK          bool        `json:"ok"`
	Checked     int         `json:"checked"` // serving intervals compared
	Index       uint64      `json:"index"`   // at which the hashes were compared
	Hashes      []StateHash `json:"hashes"`
	DoubleOwned int         `json:"double_owned"`
	Overlaps    int         `json:"overlaps"`
	Violations  []string    `json:"violations"`
	Unreachable []string    `json:"unreachable"` // nodes that could not be asked
}

// StateHash is a node's hash of the replicated state at a log index.
type StateHash struct {
	Node  string `json:"node"`
	Index uint64 `json:"index"`
	Hash  string `json:"hash"`
}

// Serving is one node's record of having served a session under one epoch:
// the log positions of the first and the last command or read marker that it
// saw committed for it.
type Serving struct {
	Session     string `json:"session"`
	Epoch       uint64 `json:"epoch"`
	Worker      string `json:"worker"`
	Incarnation uint64 `json:"incarnation"`
	First       uint64 `json:"first"`
	Last        uint64 `json:"last"`
	Active      bool   `json:"active"`
}
