BEGIN TRANSACTION;
CREATE TABLE fastroai_intents (
            id TEXT NOT NULL PRIMARY KEY, run_id TEXT, run_key TEXT, pipeline TEXT, step_id TEXT,
            attempt BIGINT NOT NULL, dispatch BIGINT NOT NULL, tags TEXT, agent TEXT, model_asked TEXT,
            provider_host TEXT, service_tier TEXT, sent_at BIGINT NOT NULL, request_count BIGINT NOT NULL,
            simulated BOOLEAN NOT NULL, replay_of TEXT, upper_bound BIGINT, exact TEXT, deployment TEXT, flow_tags TEXT);
INSERT INTO "fastroai_intents" VALUES('entry-1','run-1','march','p','s',1,1,'{"customer":"a\"b","team":"search"}','a','openai:gpt-5-mini','api.openai.com',NULL,1772408220000000,1,0,NULL,250000000000,NULL,NULL,NULL);
INSERT INTO "fastroai_intents" VALUES('entry-2','run-1','march','p','t',1,1,NULL,'a','openai:gpt-5-mini','api.openai.com',NULL,1772408640000000,1,0,NULL,250000000000,NULL,'prod','["nightly"]');
INSERT INTO "fastroai_intents" VALUES('entry-3','run-2','march','p','s',1,1,'{"team":"ads"}','a','openai:new','api.openai.com',NULL,1772409060000000,1,0,NULL,250000000000,NULL,NULL,NULL);
INSERT INTO "fastroai_intents" VALUES('entry-4','run-2','march','p','s',2,1,NULL,'a','openai:gpt-5-mini','api.openai.com',NULL,1772409480000000,1,0,NULL,500000000000,NULL,NULL,NULL);
INSERT INTO "fastroai_intents" VALUES('entry-5',NULL,NULL,NULL,NULL,1,1,NULL,NULL,'openai:gpt-5-mini','api.openai.com',NULL,1772409900000000,1,0,NULL,250000000000,NULL,NULL,NULL);
INSERT INTO "fastroai_intents" VALUES('entry-6','run-3','march','p','s',1,1,'{"team":"search"}','a','openai:gpt-5-mini','api.openai.com',NULL,1772410320000000,1,1,NULL,250000000000,NULL,NULL,NULL);
INSERT INTO "fastroai_intents" VALUES('entry-7','run-1','march','p','s',1,1,NULL,'a','openai:gpt-5-mini','api.openai.com','flex',1772410740000000,3,0,NULL,250000000000,NULL,NULL,NULL);
INSERT INTO "fastroai_intents" VALUES('entry-8','run-4','march','p','s',1,1,NULL,'a','openai:gpt-5-mini','api.openai.com',NULL,1772411160000000,1,0,NULL,250000000000,NULL,NULL,NULL);
INSERT INTO "fastroai_intents" VALUES('entry-9','run-4','march','p','s',1,1,'{"team":"search"}','a','openai:gpt-5-mini','api.openai.com',NULL,1772411580000000,1,0,NULL,250000000000,NULL,NULL,NULL);
INSERT INTO "fastroai_intents" VALUES('entry-10','run-5','march','p','s',1,1,NULL,'a','openai:gpt-5-mini','api.openai.com',NULL,1772494200000000,1,0,'entry-1',250000000000,NULL,NULL,NULL);
CREATE TABLE fastroai_leases (
            kind TEXT NOT NULL, name TEXT NOT NULL, token TEXT NOT NULL, host TEXT NOT NULL, pid BIGINT NOT NULL,
            pipeline TEXT, run_key TEXT, since BIGINT NOT NULL, renewed_at BIGINT NOT NULL, duration BIGINT NOT NULL,
            PRIMARY KEY (kind, name));
INSERT INTO "fastroai_leases" VALUES('run_key','["p", "march"]','t0','elsewhere',7,'p','march',1795617167015846,1795617167015846,30000000);
CREATE TABLE fastroai_outcomes (
            entry_id TEXT NOT NULL, final SMALLINT NOT NULL, state TEXT NOT NULL, settled_at BIGINT NOT NULL,
            model_answered TEXT, provider TEXT, service_tier TEXT, response_id TEXT,
            input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cache_read_tokens BIGINT NOT NULL,
            cache_write_tokens BIGINT NOT NULL, input_audio_tokens BIGINT NOT NULL,
            output_audio_tokens BIGINT NOT NULL, cache_audio_read_tokens BIGINT NOT NULL, further_usage TEXT,
            cost BIGINT, request_fees BIGINT, upper_bound BIGINT, exact TEXT, price_source TEXT, price_version TEXT,
            error TEXT, PRIMARY KEY (entry_id, final));
INSERT INTO "fastroai_outcomes" VALUES('entry-1',1,'charged',1772408223000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',1000,10,400,0,0,0,0,'{"web_searches":2}',123456789,10000000000,250000000000,NULL,'genai-prices 1','1',NULL);
INSERT INTO "fastroai_outcomes" VALUES('entry-2',1,'charged',1772408643000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',1000,10,400,0,0,0,0,NULL,NULL,NULL,250000000000,'{"cost":"1E-18"}','genai-prices 1','1',NULL);
INSERT INTO "fastroai_outcomes" VALUES('entry-3',1,'unpriced',1772409063000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',1000,10,400,0,0,0,0,NULL,NULL,NULL,250000000000,NULL,'genai-prices 1','1','no price');
INSERT INTO "fastroai_outcomes" VALUES('entry-4',0,'unsettled',1772409483000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',1000,10,400,0,0,0,0,NULL,2000000000,NULL,500000000000,NULL,'genai-prices 1','1','timed out');
INSERT INTO "fastroai_outcomes" VALUES('entry-5',1,'refused',1772409903000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',0,0,0,0,0,0,0,NULL,NULL,NULL,250000000000,NULL,'genai-prices 1','1','HTTP 429; slow down');
INSERT INTO "fastroai_outcomes" VALUES('entry-6',1,'charged',1772410323000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',1000,10,400,0,0,0,0,NULL,750000000000,NULL,250000000000,NULL,'genai-prices 1','1',NULL);
INSERT INTO "fastroai_outcomes" VALUES('entry-7',1,'charged',1772410743000000,'gpt-5-mini-2025-08-07','openai','flex','r',1000,10,400,0,0,0,0,NULL,9000000500000000000,NULL,250000000000,NULL,'genai-prices 1','1',NULL);
INSERT INTO "fastroai_outcomes" VALUES('entry-9',0,'unsettled',1772411583000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',1000,10,400,0,0,0,0,NULL,NULL,NULL,250000000000,NULL,'genai-prices 1','1','cancelled');
INSERT INTO "fastroai_outcomes" VALUES('entry-9',1,'charged',1772411583000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',1000,10,400,0,0,0,0,NULL,1250000000000,NULL,250000000000,NULL,'genai-prices 1','1',NULL);
INSERT INTO "fastroai_outcomes" VALUES('entry-10',1,'replayed',1772494200000000,'gpt-5-mini-2025-08-07','openai',NULL,'r',1000,10,400,0,0,0,0,'{"web_searches":2}',123456789,10000000000,250000000000,NULL,'genai-prices 1','1',NULL);
CREATE TABLE fastroai_schema (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "fastroai_schema" VALUES(1);
INSERT INTO "fastroai_schema" VALUES(2);
INSERT INTO "fastroai_schema" VALUES(3);
CREATE INDEX fastroai_intents_sent_at ON fastroai_intents (sent_at);
CREATE INDEX fastroai_intents_run_key ON fastroai_intents (run_key) WHERE run_key IS NOT NULL;
COMMIT;
