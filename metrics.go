package baton

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/baton-cluster/baton/store"
)

// metrics reads a node's figures when it is scraped: nothing is counted twice,
// and nothing costs anything in between.
type metrics struct{ node *Node }

var _ prometheus.Collector = (*metrics)(nil)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("baton_"+name, help, labels, nil)
}

var (
	metricReady     = desc("ready", "1 while the node can do its part, else 0.")
	metricFault     = desc("fault", "1 for each reason why it cannot.", "code")
	metricLeader    = desc("raft_leader", "1 while this node leads.")
	metricTerm      = desc("raft_term", "Raft's term.")
	metricCommit    = desc("raft_commit_index", "Index of the last entry that is known to be committed.")
	metricApplied   = desc("raft_applied_index", "Index of the last entry that was applied.")
	metricLast      = desc("raft_last_index", "Index of the last entry in the log.")
	metricContact   = desc("raft_last_contact_seconds", "Since the leader was heard; 0 on the leader.")
	metricWrites    = desc("log_writes_total", "Synced writes to the log.")
	metricBytes     = desc("log_bytes_total", "Bytes appended to the log.")
	metricFsync     = desc("log_write_seconds", "Upper bound of the duration of synced writes, by quantile, since the start.", "quantile")
	metricEntries   = desc("log_entries_total", "Entries that this node put into the log as leader.")
	metricCommands  = desc("log_commands_total", "Commands in those entries.")
	metricPending   = desc("commands_pending", "Commands that wait for the log, or for its answer.")
	metricSessions  = desc("sessions", "Sessions in the cluster, as this node has applied it.", "state")
	metricOwned     = desc("sessions_owned", "Sessions that this node owns.")
	metricBudget    = desc("byte_budget_bytes", "What all sessions may hold together, and what they do.", "what")
	metricLease     = desc("lease_left_seconds", "How long the worker's lease still lasts, 0 without one.")
	metricHandshake = desc("user_handshakes_total", "Connections of clients, by kind of handshake.", "kind")
	metricConns     = desc("user_connections", "Connections of clients now.")
	metricRefused   = desc("user_refused_total", "Connections of clients that a limit turned away.", "by")
	metricAlarms    = desc("false_alarms_total", "Suspicions of this node's director that proved wrong.")
	metricFences    = desc("fences_total", "Fences of this node's director.")
	metricCert      = desc("certificate_end_timestamp_seconds", "When the certificate in use ends, and its authority's.", "of")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		metricReady, metricFault, metricLeader, metricTerm, metricCommit, metricApplied, metricLast, metricContact, metricWrites,
		metricBytes, metricFsync, metricEntries, metricCommands, metricPending, metricSessions, metricOwned, metricBudget,
		metricLease, metricHandshake, metricConns, metricRefused, metricAlarms, metricFences, metricCert,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	n := m.node
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	faults := n.Faults()
	gauge(metricReady, asFloat(len(faults) == 0))
	for _, f := range faults {
		gauge(metricFault, 1, f.Code)
	}
	leaf, authority := n.identity.NotAfter()
	gauge(metricCert, float64(leaf.Unix()), "node")
	gauge(metricCert, float64(authority.Unix()), "authority")
	if !n.serves.Load() {
		return // parts are missing
	}
	st := n.cluster.Stats()
	gauge(metricLeader, asFloat(st.State == "leader"))
	gauge(metricTerm, float64(st.Term))
	gauge(metricCommit, float64(st.Commit))
	gauge(metricApplied, float64(st.Applied))
	gauge(metricLast, float64(st.Last))
	if st.LastContact >= 0 {
		gauge(metricContact, st.LastContact.Seconds())
	}
	counter(metricWrites, st.LogWrites)
	counter(metricBytes, st.LogBytes)
	gauge(metricFsync, st.FsyncP50.Seconds(), "0.5")
	gauge(metricFsync, st.FsyncP99.Seconds(), "0.99")
	counter(metricEntries, st.Entries)
	counter(metricCommands, st.Commands)
	gauge(metricPending, float64(st.Pending))

	n.cluster.FSM().View(func(s *store.Store) {
		counts, c := s.Counts(), s.Cluster()
		gauge(metricSessions, float64(counts.Attached), "attached")
		gauge(metricSessions, float64(counts.Sessions-counts.Attached), "detached")
		gauge(metricOwned, float64(counts.Owned[n.id]))
		gauge(metricBudget, float64(c.GetBytesUsed()), "used")
		gauge(metricBudget, float64(c.GetByteBudget()), "limit")
	})
	left, _ := n.leaseLeft(n.worker.Incarnation())
	gauge(metricLease, left.Seconds())
	conns := n.UserConns()
	counter(metricHandshake, conns.Full, "full")
	counter(metricHandshake, conns.Resumed, "resumed")
	counter(metricHandshake, conns.ZeroRTT, "0rtt")
	gauge(metricConns, float64(conns.Open))
	counter(metricRefused, conns.Refused, "limit")
	counter(metricRefused, conns.Overflown, "queue")
	found := n.director.Detection()
	counter(metricAlarms, uint64(found.FalseAlarms))
	counter(metricFences, uint64(found.Fences))
}

func asFloat(v bool) float64 {
	if v {
		return 1
	}
	return 0
}
