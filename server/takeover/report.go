package takeover

// Outcome is what became of a row.
type Outcome string

// The outcomes of a row.
const (
	Taken    Outcome = "taken"
	Already  Outcome = "already there"
	Expired  Outcome = "expired"
	Same     Outcome = "same here" // nothing to take: the server decides the same by itself
	NotTaken Outcome = "not taken"
)

// Row is what became of one row.
type Row struct {
	Table   string  `json:"table"`
	ID      string  `json:"id"`  // the row's number in the peer's table
	Row     string  `json:"row"` // what it is about
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason,omitempty"`
}

// Table counts what became of a table's rows.
type Table struct {
	Table    string         `json:"table"`
	Fault    string         `json:"fault,omitempty"` // why no row was looked at
	Rows     int            `json:"rows"`
	Taken    int            `json:"taken"`
	Already  int            `json:"already"`
	Expired  int            `json:"expired"`
	Same     int            `json:"same"`
	NotTaken int            `json:"not_taken"`
	Reasons  map[string]int `json:"reasons,omitempty"` // of NotTaken; rare ones beyond maxReasons count as "other reasons"
}

// maxReasons bounds the different reasons of a table: some name what a row says.
const maxReasons = 50

func (t *Table) add(r Row) {
	t.Rows++
	switch r.Outcome {
	case Taken:
		t.Taken++
	case Already:
		t.Already++
	case Expired:
		t.Expired++
	case Same:
		t.Same++
	case NotTaken:
		t.NotTaken++
		if t.Reasons == nil {
			t.Reasons = make(map[string]int)
		}
		if _, known := t.Reasons[r.Reason]; !known && len(t.Reasons) >= maxReasons {
			r.Reason = "other reasons"
		}
		t.Reasons[r.Reason]++
	}
}
