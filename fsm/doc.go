// Package fsm puts the tables (package store) under Raft: it decodes log
// entries, applies them under a lock, takes snapshots and restores them, and
// keeps the state hashes by which replicas are compared.
//
// It holds the two persisted formats: the log entry (entry.go) and the snapshot
// file (file.go). Both are numbered and checked before anything is believed.
//
// What it does not do: it makes no rule about sessions (store does), knows no
// time but the entries', and proposes nothing (cluster does).
package fsm
