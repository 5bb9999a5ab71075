package store

import "sync"

// A tree is searched with an item that bears the key, and such an item escapes to
// the heap: at several look-ups a command, and rows of hundreds of bytes, a sixth
// of all that a node allocated during a drain. Reads go on side by side, so each
// look-up borrows an item of its own.
var (
	seekRows       = sync.Pool{New: func() any { return new(row) }}
	seekWorkers    = sync.Pool{New: func() any { return new(worker) }}
	seekMigrations = sync.Pool{New: func() any { return new(migration) }}
	seekJobs       = sync.Pool{New: func() any { return new(job) }}
)

func (s *Store) row(id string) *row {
	key := seekRows.Get().(*row)
	key.id = id
	e, ok := s.sessions.Get(slot{live: key})
	key.id = ""
	seekRows.Put(key)
	if !ok {
		return nil
	}
	return s.unpacked(e)
}

func (s *Store) worker(id string) *worker {
	key := seekWorkers.Get().(*worker)
	key.id = id
	w, _ := s.workers.Get(key)
	key.id = ""
	seekWorkers.Put(key)
	return w
}

func (s *Store) migration(id uint64) *migration {
	key := seekMigrations.Get().(*migration)
	key.id = id
	m, _ := s.migrations.Get(key)
	seekMigrations.Put(key)
	return m
}

func (s *Store) job(id uint64) *job {
	key := seekJobs.Get().(*job)
	key.id = id
	j, _ := s.jobs.Get(key)
	seekJobs.Put(key)
	return j
}
