-- Grounded answers: what a provider keeps of one may hold passages of documents that not everybody may see.
ALTER TABLE response_link
    ADD COLUMN groups text NOT NULL DEFAULT '';  -- whose: headway.domain.access.fingerprint; empty for everybody
