package pa

// PublicationRow is one publication (RFC 3903) as it is stored. Times are
// Unix milliseconds.
type PublicationRow struct {
	Resource    string // canonical key of the presentity
	Event       string // event package
	ID          string // stable over the life of the publication
	ETag        string // the entity tag now valid
	ContentType string
	Body        []byte
	Seq         uint64 // order of the last change within the presentity
	UpdatedMS   int64
	ExpiresMS   int64
}

// PutPublication inserts or replaces a row.
type PutPublication struct{ Row PublicationRow }

// DeletePublication removes a row; a missing one is no error.
type DeletePublication struct{ Resource, Event, ID string }

// String names the write for logs.
func (w PutPublication) String() string {
	return "publication " + w.Row.ID + " of " + w.Row.Resource
}
